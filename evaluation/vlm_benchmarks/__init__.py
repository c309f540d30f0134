"""DocVQA, AI2D, MMMU, MME and HallusionBench through lmms-eval: what a checkpoint still knows as a VLM."""
