"""The kernels in NumPy: the reference, and the fallback where C kernels cannot run."""
