"""Autograd for the kernels. A Function is told the torch.ops namespace; it knows no backend."""
