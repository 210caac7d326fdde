"""What a loader will give, told without running it: samples of steps, proofs of equal topologies, shuffle quality, costs."""
