"""Autograd for the kernels. Functions take a torch.ops namespace and know no backend."""
