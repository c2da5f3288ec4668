"""The fused layers against PEFT's own forward, which is the same classes' parent."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from tiny import adapter_gradients, distance, load, random_texts, some_loss, train_a_little
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from otherside import adapted, adapters
from otherside.adapted import AdaptedLinear
from otherside.adapters import Lora

TEXTS = random_texts([1, 9, 3, 17, 9, 2])


class Block(nn.Module):
    """Three layers that read one tensor, one of them with a bias, and a fourth."""

    def __init__(self, bias=True):
        super().__init__()
        self.q_proj = nn.Linear(24, 32, bias=bias)
        self.k_proj = nn.Linear(24, 16, bias=False)
        self.v_proj = nn.Linear(24, 16, bias=False)
        self.o_proj = nn.Linear(16, 24, bias=False)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.cat([q, k, self.o_proj(k * v)], -1)


def block(settings=None, **options):
    """An adapted block whose adapter does something, in training."""
    torch.manual_seed(0)
    settings = settings or Lora(r=4, dropout=0.3)
    made = Block()
    config = LoraConfig(
        r=settings.r,
        lora_dropout=settings.dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        **options,
    )
    adapters.attach_to_piece(made, settings, config)
    train_a_little(made, size=0.3)
    return made.train()


def as_peft(model):
    """The same model with PEFT's own forward."""
    for layer in adapters.adapter_layers(model):
        layer.__class__ = lora.Linear
    return model


def run(model, x, call=nn.Module.__call__):
    """Output and gradients, of the input too."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = call(model, x)
    some_loss(out).backward()
    return {"out": out.detach(), "x": x.grad, **adapter_gradients(model)}


def assert_equal(found, expected, within=1e-6):
    assert found.keys() == expected.keys() and len(found) == 10
    assert {name: d for name in found if (d := distance(found[name], expected[name])) > within} == {}


class Products(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def x():
    return torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def unfused(monkeypatch):
    """Makes the fused function an error."""
    monkeypatch.setattr(adapted._Adapted, "apply", lambda *_: pytest.fail("was fused"))


class TestEqualsPEFT:
    @pytest.mark.parametrize("p", [0.0, 0.3])
    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("rslora", [False, True])
    def test_forward_and_gradients(self, x, p, share, rslora):
        settings = Lora(r=4, dropout=p, share_dropout=share, rslora=rslora)
        assert_equal(run(block(settings), x), run(as_peft(block(settings)), x))

    def test_whatever_the_inputs_shape_and_layout(self):
        for x in (torch.randn(24), torch.randn(0, 24), torch.randn(24, 5).t(), torch.randn(2, 3, 4, 24)):
            found, expected = run(block(), x), run(as_peft(block()), x)
            assert found["out"].shape == expected["out"].shape
            assert not len(x) or all(distance(found[k], expected[k]) < 1e-6 for k in found)

    def test_layers_with_ranks_of_their_own(self, x):
        options = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 4}, "lora_alpha": 8}
        found = run(block(**options), x)
        assert found["k_proj.lora_A.default.weight"].shape == (2, 24)
        assert_equal(found, run(as_peft(block(**options)), x))

    @pytest.mark.parametrize("p", [0.0, 0.3])
    def test_a_model(self, tiny_llama, p):
        def states_and_gradients(fused):
            backbone = load(tiny_llama, Lora(r=4, dropout=p)).train()
            train_a_little(backbone.lm)
            if not fused:
                as_peft(backbone)
            torch.manual_seed(0)
            states = backbone(TEXTS)
            some_loss(states).backward()
            return states, torch.cat([g.flatten() for g in adapter_gradients(backbone.lm).values()])

        for found, expected in zip(states_and_gradients(True), states_and_gradients(False), strict=True):
            assert distance(found, expected) < 1e-5  # of what 1e-7 in a layer became on its way

    @pytest.mark.parametrize("base", [torch.bfloat16, torch.float32])
    def test_as_near_to_float32_in_bfloat16(self, base):
        """A bfloat16 base as the backbone runs it, and a float32 one under Lightning's bf16-mixed."""
        x = torch.randn(64, 16, 24, generator=torch.Generator().manual_seed(3))

        def rounded(model):
            for layer in adapters.adapter_layers(model):
                layer.base_layer.to(base)
            with torch.autocast("cpu", torch.bfloat16):
                return run(model, x.to(base))

        def error(found):
            return torch.tensor([(found[k].float() - truth[k]).norm() / truth[k].norm() for k in truth])

        truth, fused, pefts = run(as_peft(block()), x), rounded(block()), rounded(as_peft(block()))
        assert {k: v.dtype for k, v in fused.items()} == {k: v.dtype for k, v in pefts.items()}
        assert error(fused).max() < 0.02 and error(fused).mean() < 1.2 * error(pefts).mean()

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_recomputed_exactly(self, x, reentrant):
        made = block()
        found = run(made, x, lambda made, x: checkpoint(made, x, use_reentrant=reentrant))
        assert all(layer.readers._input is None for layer in made.children())
        expected = run(block(), x)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_backward_inside_autocast(self, x):
        def call(made, x):
            torch.set_autocast_enabled("cpu", False)
            out = made(x)
            torch.set_autocast_enabled("cpu", True)
            return out

        with torch.autocast("cpu", torch.bfloat16):
            found = run(block(), x, call)
        assert_equal(found, run(block(), x))


class TestWork:
    def test_one_product_for_the_a_of_all_and_none_of_its_results_passed_over_again(self, x):
        made = block(Lora(r=4, dropout=0.3))
        x = x.clone().requires_grad_()
        torch.manual_seed(0)
        with Products() as forward:
            out = made(x)
        with Products() as backward:
            out.backward(torch.ones_like(out))
        bases, groups = 4, 2
        assert forward.counts["mm"] + forward.counts["addmm"] == bases + groups
        assert forward.counts["addmm_"] == bases
        assert backward.counts["mm"] == 2 * bases + 2 * groups  # of A and B; of what is between; of the input
        assert backward.counts["addmm_"] == bases
        assert forward.counts["random_"] == groups
        assert backward.counts["add"] + backward.counts["add_"] <= 1  # k reaches the output on two ways

    def test_keeps_each_thing_once(self, x):
        made = block(Lora(r=4, dropout=0.3))
        weights = {p.untyped_storage().data_ptr() for p in made.parameters()}
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = made.q_proj(x), made.k_proj(x), made.v_proj(x)
        found = sum(size for where, size in kept.items() if where not in weights)
        dropped, mask, inner, scaled_a = 22 * 24 * 4, 22 * 24, 22 * 3 * 4 * 4, 3 * 4 * 24 * 4
        assert found == dropped + mask + inner + scaled_a and held

    @pytest.mark.parametrize("grad", [True, False])
    def test_nothing_is_kept_when_all_have_been_called(self, x, grad):
        made = block()
        seen = weakref.ref(x := x.clone())
        with torch.set_grad_enabled(grad):
            made(x)
        assert all(not r._outputs and r._input is None for r in {layer.readers for layer in made.children()})
        del x
        gc.collect()
        assert seen() is None

    def test_a_layer_alone_and_again(self, x):
        """Called out of turn, with other inputs, or twice: always its own output."""
        made, pefts, other = block(Lora(r=4, dropout=0.0)), as_peft(block(Lora(r=4, dropout=0.0))), x + 1
        for name, y in [("k_proj", x), ("k_proj", x), ("q_proj", other), ("k_proj", x), ("k_proj", other)]:
            assert distance(made.get_submodule(name)(y), pefts.get_submodule(name)(y)) < 1e-6


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
class TestFallsBack:
    """What the fused function does not know, PEFT computes."""

    def test_fuses_otherwise(self, x):
        assert {type(layer) for layer in block().children()} == {AdaptedLinear}

    def test_adapters_off(self, x, unfused):
        made = block()
        adapters.switch(made, on=False)
        assert torch.equal(made.q_proj(x), made.q_proj.base_layer(x))

    def test_merged(self, x, unfused):
        made = block()
        for layer in made.children():
            layer.merge()
        assert torch.equal(made.q_proj(x), made.q_proj.base_layer(x))

    def test_dora(self, x, unfused):
        made = block(Lora(r=4, dropout=0.0, dora=True))
        assert {type(layer) for layer in made.children()} == {lora.Linear}
        made(x)

    def test_several_adapters(self, x, unfused):
        made = block(Lora(r=4, dropout=0.0))
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"]), made, adapter_name="more")
        made.q_proj.set_adapter(["default", "more"])
        made.q_proj(x)

    def test_hooks_on_its_parts_are_called(self, x, unfused):
        made, seen = block(), []
        made.q_proj.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
        made.q_proj(x)
        assert seen

    def test_quantised_bases(self, x, unfused):
        class Quantised(nn.Linear):
            pass

        made = Block()
        made.q_proj.__class__ = Quantised
        adapters.attach_to_piece(made, Lora(r=4), LoraConfig(r=4, target_modules=["q_proj"]))
        made.q_proj(x)

    def test_scalings_of_their_own(self, x, unfused):
        block(alpha_pattern={"v_proj": 3}).q_proj(x)

    def test_a_base_that_trains(self, x, unfused):
        made = block()
        made.q_proj.base_layer.bias.requires_grad_()
        made.q_proj(x).sum().backward()
        assert made.q_proj.base_layer.bias.grad is not None

    def test_arguments(self, x, unfused):
        block().q_proj(x, adapter_names=["default"] * len(x))

    def test_a_base_of_another_type_outside_autocast(self, x, unfused):
        made = block()
        made.q_proj.base_layer.double()
        with pytest.raises(RuntimeError, match="dtype"):
            made.q_proj(x)

    def test_another_adapter(self, x, unfused):
        made = block(Lora(r=4, dropout=0.0))
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"]), made, adapter_name="more")
        made.q_proj.set_adapter("more")
        made.q_proj(x)
