"""The quickstart: a real run on real text, killed and resumed, with a proof that no sample was lost or repeated."""
