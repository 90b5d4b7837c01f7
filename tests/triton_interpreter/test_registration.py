"""The ops of Triton as registered in torch: schemas, opcheck, torch.compile."""

import torch

import mmix_fast as m

OPS = torch.ops.mmix_fast_triton


def test_opcheck():
    x, lam, y = torch.randn(3, 4), torch.tensor(0.3), torch.tensor([0, 1, 3])
    perm = torch.tensor([1, 2, 0])
    targets = (y, perm, lam, 4, 0.1, -100, torch.float32)
    loss = (y, perm, None, lam, None, None, -100, "mean", 0.1, 0.0, 0.0, 0, 0)
    _, stats, gradient = OPS.cross_entropy(x, *loss, 1.0)
    one = torch.ones(())
    shard = (*loss[:-2], 2, 7)
    part_stats = OPS.cross_entropy_part(x, *shard)[:, [0, 1, 3]]
    binary = (y, perm, None, lam, None, None, "mean", 0.1, None)
    written = OPS.binary_cross_entropy(x, *binary, 1.0)[1]
    for op, inputs in (
        (OPS.mix, (x, perm, lam, 0, False)),
        (OPS.mix_, (x.clone(), perm, lam, 0)),
        (OPS.mix_other, (x, x.clone(), perm, lam, 0)),
        (OPS.mix_other_, (x.clone(), x, None, lam, 0)),
        (OPS.sum_rows_, (x.clone(), x, lam, perm, torch.arange(4), 0)),
        (OPS.mix_targets, (y, None, *targets[2:], y.flip(0))),
        (OPS.cutmix_, (torch.randn(3, 2, 4), perm, torch.tensor([0, 1, 1, 3]), lam)),
        (OPS.mix_targets, targets),
        (OPS.mix_batch_, (x.clone(), *targets)),
        (OPS.cross_entropy, (x, *loss, 1.0)),
        (OPS.cross_entropy_backward, (one, stats, x, *loss)),
        (OPS.cross_entropy_backward_, (one, stats, x.clone(), *loss)),
        (OPS.cross_entropy_rescale_, (gradient, one * 2, stats, x, *loss)),
        (OPS.cross_entropy_, (x.clone(), *loss)),
        (OPS.cross_entropy_part, (x, *shard)),
        (OPS.cross_entropy_backward, (one, part_stats, x, *shard)),
        (OPS.cross_entropy_backward_, (one, part_stats, x.clone(), *shard)),
        (OPS.binary_cross_entropy, (x, *binary, 1.0)),
        (OPS.binary_cross_entropy, (x, *binary[:6], "none", 0.0, 0.2, None)),
        (OPS.binary_cross_entropy_backward, (one, x, *binary)),
        (OPS.binary_cross_entropy_backward_, (one, x.clone(), *binary)),
        (OPS.binary_cross_entropy_rescale_, (written, one * 2, x, *binary)),
    ):
        torch.library.opcheck(op.default, inputs)


def test_at_most_two_graphs_for_any_lam(backend):
    torch._dynamo.reset()
    perm, y, graphs = torch.randperm(6), torch.randint(0, 5, (6,)), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(x, lam):
        h = m.mix_(x * 2, perm, lam)
        h = m.mix(h, perm, lam)
        return m.mixed_cross_entropy(h, y, perm, lam) + m.mixed_binary_cross_entropy(
            h, y, perm, lam
        )

    compiled = torch.compile(step, fullgraph=True, backend=count)
    for lam in (0.1, 0.2, 0.5, 0.77):
        x = torch.randn(6, 5, requires_grad=True)
        torch.testing.assert_close(compiled(x, lam), step(x, lam))
    assert len(graphs) <= 2
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, lam = torch.randn(6, 5, requires_grad=True), torch.tensor(0.3)
    want = torch.autograd.grad(step(x, lam), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x, lam), x), want)
