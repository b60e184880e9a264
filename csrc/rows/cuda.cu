// The version of the toolkit this was built with, for `python -m wfkernels info`.
extern "C" int wfkernels_cuda_toolkit() { return CUDART_VERSION; }
