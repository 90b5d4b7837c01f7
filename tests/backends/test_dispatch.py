"""Choosing a backend, and a missing extension."""

import asyncio
import contextvars
import inspect
import threading
import types
from dataclasses import replace

import pytest
import torch

import mmix_fast as m
from mmix_fast import dispatch, info
from mmix_fast.autograd.kernels import Kernels
from tests.support.cases import run


def test_names_of_backends():
    with pytest.raises(
        ValueError, match="backend must be one of cpp, cuda, triton, reference, got 'nope'"
    ):
        m.use_backend("nope").__enter__()
    out = run("import mmix_fast.info as i; print(i.table())").stdout
    assert "cpp" in out and "reference" in out
    call = "import torch, mmix_fast as m; m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    bad = run(call, MMIX_FAST_BACKEND="nope")
    assert "backend must be one of" in bad.stderr


def test_info_tells_of_a_usable_backend_whose_first_call_fails(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("the driver is\n older than the CUDA runtime")

    broken = types.SimpleNamespace(mix=fails)
    every = [replace(b, ops=broken) if b.name == "reference" else b for b in dispatch.BACKENDS]
    assert "a call fails" not in info.table()
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(every))
    lines = [line for line in info.table().splitlines() if "a call fails" in line]
    assert len(lines) == 1 and lines[0].startswith("reference")
    assert lines[0].endswith("but a call fails: the driver is older than the CUDA runtime")


def chosen():
    return dispatch.select(torch.zeros(1)).name


def in_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_blocks_of_overlapping_threads():
    entered, second = threading.Event(), threading.Event()

    def one():
        with m.use_backend("reference"):
            entered.set()
            second.wait()
            return chosen()

    def other():
        entered.wait()
        before = chosen()
        with m.use_backend("cpp"):
            second.set()
            first.join()
            return before, chosen()

    found = {}
    first = threading.Thread(target=lambda: found.update(one=one()))
    first.start()
    found["other"] = in_thread(other)
    assert found == {"one": "reference", "other": ("cpp", "cpp")}
    assert chosen() == "cpp" and not dispatch._forcing and not dispatch._open
    with m.use_backend("reference"):
        assert in_thread(chosen) == "cpp"


def test_blocks_of_asyncio_tasks():
    async def task(name, pause):
        with m.use_backend(name):
            await asyncio.sleep(pause)
            return chosen()

    async def outlives(ended):
        inside = chosen()
        await ended.wait()
        return inside, chosen()

    async def main():
        ended = asyncio.Event()
        with m.use_backend("reference"):
            later = asyncio.create_task(outlives(ended))
            names = await asyncio.gather(task("cpp", 0.02), task("reference", 0.01), task("cpp", 0))
        ended.set()
        with m.use_backend("reference"):
            return names, await later

    # A task started in a block that outlives the block is forced only until the block ends.
    assert asyncio.run(main()) == (["cpp", "reference", "cpp"], ("reference", "cpp"))


def test_blocks_end_in_any_order_and_by_exceptions():
    def generator(name):
        with m.use_backend(name):
            yield chosen()

    first = generator("reference")
    assert next(first) == "reference"
    with m.use_backend("cpp"):
        first.close()
        assert chosen() == "cpp"
    assert chosen() == "cpp" and not dispatch._forcing
    elsewhere = generator("reference")
    assert contextvars.copy_context().run(next, elsewhere) == "reference"
    assert chosen() == "cpp"
    elsewhere.close()  # in a context other than that of its start
    assert not dispatch._forcing
    with pytest.raises(KeyError), m.use_backend("reference"), m.use_backend("cpp"):
        raise KeyError
    assert chosen() == "cpp" and not dispatch._forcing

    @m.use_backend("reference")
    def decorated():
        return chosen()

    assert decorated() == "reference" and chosen() == "cpp"


def test_a_thread_of_the_autograd_engine_follows_the_caller_of_backward():
    """A checkpoint recomputes its forward there. On CPU the engine has no threads: simulate one."""

    def as_the_engine(context):
        torch._C._stash_obj_in_tls("context", context)
        try:
            with m.use_backend("cpp"):
                inside = chosen()
            return inside, chosen()
        finally:
            torch._C._stash_obj_in_tls("context", None)

    with m.use_backend("reference"):
        context = contextvars.copy_context()
        assert in_thread(lambda: as_the_engine(context)) == ("cpp", "reference")
        assert in_thread(lambda: as_the_engine(contextvars.Context())) == ("cpp", "cpp")
        assert in_thread(lambda: as_the_engine(None)) == ("cpp", "cpp")
    assert in_thread(lambda: as_the_engine(context)) == ("cpp", "cpp")


@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_graph_follows_its_caller(inside):
    torch._dynamo.reset()
    x, perm = torch.randn(4, 3), torch.tensor([1, 2, 3, 0])
    graphs, ran = [], []

    def watched(graph, _):
        graphs.append(graph)

        def run(*args):
            ran.append("cpp" if "mmix_fast" in graph.code else "reference")
            return graph.forward(*args)

        return run

    def call(x):
        if inside:
            with m.use_backend("reference"):
                return m.mix(x, perm, 0.3)
        return m.mix(x, perm, 0.3)

    compiled = torch.compile(call, fullgraph=True, backend=watched)
    wanted = []
    for _ in range(3):
        compiled(x)
        with m.use_backend("reference"):
            compiled(x)
            with m.use_backend("cpp"):
                compiled(x)
            in_thread(lambda: compiled(x))
            compiled(x)
        wanted += ["cpp", "reference", "cpp", "cpp", "reference"]
    assert ran == (["reference"] * 15 if inside else wanted)
    assert len(graphs) <= 4
    assert dispatch._traced is None and chosen() == "cpp"


@pytest.mark.filterwarnings("error")
def test_a_graph_may_ask_whether_cuda_is_usable():
    torch._dynamo.reset()
    ask = torch.compile(lambda x: (x, dispatch.CUDA.missing()), fullgraph=True, backend="eager")
    assert ask(torch.zeros(1))[1] == dispatch.CUDA.missing()


def test_missing_extension_says_what_to_do():
    gone = "import sys; sys.modules['mmix_fast._C'] = None; import torch, mmix_fast as m;"
    call = "m.mix(torch.rand(2,2), torch.tensor([1,0]), .3);"
    done = run(gone + call + call)
    assert done.returncode == 0
    assert done.stderr.count("pip install -e . --no-build-isolation") == 1
    forced = run(gone + "c = m.use_backend('cpp'); c.__enter__();" + call)
    assert "RuntimeError: backend 'cpp' cannot serve this call" in forced.stderr


def test_import_is_quick():
    # CPU time (children's too), not wall time: other tests run at the same time.
    used = "sum(os.times()[:4])"
    code = f"import os, torch; t = {used}; import mmix_fast; print({used} - t)"
    assert min(float(run(code).stdout) for _ in range(3)) < 0.15


@pytest.mark.parametrize(
    "op",
    [
        "mix",
        "mix_",
        "cutmix_",
        "mix_targets",
        "mix_batch_",
        "mixed_cross_entropy",
        "mixed_binary_cross_entropy",
        "mixed_linear_cross_entropy",
    ],
)
def test_kernels_take_the_arguments_of_the_reference(op):
    wanted = inspect.signature(getattr(m.reference, op)).parameters
    taken = inspect.signature(getattr(Kernels("mmix_fast"), op)).parameters
    assert [(p.name, p.kind) for p in taken.values()] == [(p.name, p.kind) for p in wanted.values()]
