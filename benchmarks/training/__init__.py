"""What a round of training costs: workloads, fedagg's rounds, and those of peers."""
