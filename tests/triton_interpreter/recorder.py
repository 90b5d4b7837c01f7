"""What has run in this session: (kernel, dtype of the tensor it works on)."""

RAN = set()

_MAIN = ("logits_ptr", "x_ptr", "soft_ptr", "sums_ptr", "perm_ptr")


def note(launch):
    tensors = (launch.args.get(name) for name in _MAIN)
    RAN.add((launch.kernel.fn.__name__, next(t for t in tensors if t is not None).dtype))
