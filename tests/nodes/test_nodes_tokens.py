"""What layers in ComfyUI are told, forward by forward, without ComfyUI: test_comfyui_tokens.py has it whole."""

from types import SimpleNamespace

import pytest
import torch
from guided_wan import HEADS, SIGMAS, TEXT, WIDTH, Guided, Model, plain_attention
from torch._dynamo.testing import CompileCounter

from sedialect.kernels import attention_support
from sedialect.nodes.comfy.attention import attend
from sedialect.nodes.comfy.steps import step_of
from sedialect.nodes.comfy.tokens import ROOMS
from sedialect.sedialect_core.errors import ModelError
from sedialect.sedialect_core.semantics.attending import Attending
from sedialect.sedialect_core.semantics.state import Flags


class TestSteps:
    @pytest.mark.parametrize(
        ("sigma", "number"), [(1.0, 0), (0.9, 0), (0.75, 1), (0.7499999, 1), (0.3, 2), (0.25, 3), (0.01, 3), (1.2, 0)]
    )
    def test_a_forward_belongs_to_the_step_that_begins_at_or_above_its_sigma(self, sigma, number):
        assert step_of(sigma, SIGMAS, 1.0).number == number

    def test_first_and_last_steps_are_those_of_the_video(self):
        def protected(sigmas, noisiest=1.0):
            return [step_of(sigma, sigmas, noisiest).is_protected(1, 2) for sigma in sigmas[:-1]]

        assert protected(SIGMAS) == [True, False, True, True]
        assert protected(SIGMAS[:3]) == [True, False], "the call stops before the video is done"
        assert protected(SIGMAS[1:]) == [False, True, True], "the call goes on where another has stopped"
        assert protected((80.0, 10.0, 1.0, 0.0), 80.0) == [True, True, True]

    def test_a_steep_schedule_has_one_first_step(self):
        shifted = [12 * t / (1 + 11 * t) for t in (1 - number / 100 for number in range(101))]
        assert not step_of(shifted[1], shifted[1:], 1.0).opens and step_of(shifted[0], shifted, 1.0).opens


BY_NORM = {"salient_ratio": 0.25, "salient_layers": "all"}
BY_ATTENTION = {**BY_NORM, "salient_by": "attention", "refresh_every": 2}
GROUPS = {"semantic": True, "semantic_window": (1, 2, 2), "semantic_similarity": -1.0, "refresh_every": 2}


def chosen(guidance, samples=2, tokens=48):
    return [set(row.tolist()) for row in (guidance.salient.view(samples, -1) % tokens)]


def test_a_plain_plan_tells_nothing():
    model = Model()
    model(0)
    assert model.tokens is None and model.told("blocks.0.ffn.0") == [None]


def test_the_largest_tokens_of_each_sample_are_chosen():
    model = Model(**BY_NORM)
    model(0)
    (guidance,) = model.told("blocks.0.ffn.0")
    assert guidance.salient.shape == (2 * 12,) and all(len(row) == 12 for row in chosen(guidance))
    (text,) = model.told("blocks.0.cross_attn.k")
    assert text.salient.tolist() == list(range(2 * TEXT))


def test_frames_that_are_appended_do_not_disturb_what_needs_no_grid():
    model = Model(**BY_NORM)
    model.diffusion_model.references = 16
    model(0)
    assert model.told("blocks.0.ffn.0")[0].salient.shape == (2 * 16,)
    model = Model(**BY_ATTENTION)
    model.diffusion_model.references = 16
    with pytest.raises(ModelError, match="reference and guide frames"):
        model(0)


def test_attention_is_seen_when_it_is_time_and_chooses_until_then():
    model = Model(**BY_ATTENTION)
    seen = []
    for step in range(4):
        model(step, seed=step)
        room = next(iter(model.tokens.rooms.values()))
        seen.append(room.profiled)
        state = room.blocks["blocks.0"]
        assert torch.allclose(state.received.sum(2), torch.ones(1, 2), atol=1e-5)
        assert chosen(model.told("blocks.0.ffn.0")[-1]) == [set(row.topk(12).indices.tolist()) for row in state.received[0]]
    assert seen == [0, 0, 2, 2] and not model.tokens.unseen


def test_attention_is_seen_at_parts_of_the_sampler_call():
    model = Model(**{**BY_ATTENTION, "refresh_at": (0.0, 0.5)})
    seen = []
    for step in range(4):
        model(step, seed=step)
        seen.append(next(iter(model.tokens.rooms.values())).profiled)
    assert seen == [0, 0, 2, 2]


def test_groups_are_formed_in_the_forward_behind_the_one_that_looked():
    model = Model(**GROUPS)
    for step in range(3):
        model(step)
    groups = [guidance.group for guidance in model.told("blocks.1.ffn.0")]
    assert (groups[0] == -1).all() and (groups[1] >= 0).any() and torch.equal(groups[2], groups[1])
    choice = [guidance.choice for guidance in model.told("blocks.1.ffn.0")]
    assert (choice[0] == 255).all() and (choice[1] != 255).any()


def test_conditionings_windows_and_sizes_have_rooms_of_their_own():
    model = Model(**BY_ATTENTION)
    model(0, ("a",), (0,))
    model(0, ("b",), (1,), seed=1)
    model(1, ("a",), (0,))
    assert len(model.tokens.rooms) == 2 and chosen(model.told("blocks.0.ffn.0")[2], 1) == chosen(
        model.told("blocks.0.ffn.0")[0], 1
    )
    model(1, ("a",), (0,), size=(2, 4, 4))
    model(1, ("a",), (0,), context_window=SimpleNamespace(index_list=[1, 2, 3]))
    model(1, ("a", "b"))
    assert len(model.tokens.rooms) == 5 and all(room.profiled >= 0 for room in model.tokens.rooms.values())
    for number in range(ROOMS):
        model(1, (f"c{number}",), (0,))
    assert len(model.tokens.rooms) == ROOMS


def test_a_new_list_of_sigmas_or_a_new_run_begins_anew():
    model = Model(**BY_ATTENTION)
    model(3)
    model.schedule = model.schedule.clone()
    model(3)
    assert [room.profiled for room in model.tokens.rooms.values()] == [3] and len(model.tokens.rooms) == 1
    model.tokens.restart()
    assert not model.tokens.rooms


def test_a_forward_that_a_cache_leaves_out_shows_nothing():
    model = Model(**BY_ATTENTION)
    model.diffusion_model.skips = True
    model(0)
    (room,) = model.tokens.rooms.values()
    assert room.profiled == -1 and not model.tokens.unseen
    model.diffusion_model.skips = False
    model(1)
    assert room.profiled == 1


def test_a_forward_that_is_broken_off_leaves_the_next_one_right():
    model = Model(**GROUPS)

    def stop(*_):
        raise KeyboardInterrupt

    handle = model.diffusion_model.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(0)
    handle.remove()
    model.tokens.finish()
    fresh = Model(**GROUPS)
    for step in range(2):
        assert torch.equal(model(step), fresh(step))


def test_attention_that_passes_by_unseen_is_told_once():
    model = Model(**BY_ATTENTION)

    def elsewhere(x, context, options):
        return model.diffusion_model.blocks[0].self_attn.o(plain_attention(x, context, context, HEADS))

    model.diffusion_model.blocks[0].self_attn.forward = elsewhere
    with pytest.warns(UserWarning, match=r"the attention of blocks.0 \(1 blocks in all\) was not seen"):
        model(0)
    assert "was not seen" in model.tokens.unseen


def test_another_override_is_called_for_every_attention():
    calls = []

    def other(function, *args, **kwargs):
        calls.append(function)
        return function(*args, **kwargs)

    model, plain = Model(**BY_ATTENTION), Model(**BY_ATTENTION)
    for step in range(2):
        assert torch.equal(model(step, optimized_attention_override=other), plain(step))
    assert calls == [plain_attention] * 8


def test_protected_steps_need_sigmas():
    model = Model(protected_steps=(1, 1))
    for step in range(4):
        model(step)
    assert [bool(guidance.protected) for guidance in model.told("blocks.0.ffn.0")] == [True, False, False, True]
    with pytest.raises(ModelError, match="need a sampler that tells its sigmas"):
        model(0, sample_sigmas=None)


@pytest.mark.parametrize("settings", [BY_NORM, BY_ATTENTION], ids=["norm", "attention"])
def test_a_run_leaves_a_map(settings):
    model = Model(**settings)
    assert model.tokens.map is None
    model(0)
    model.tokens.finish()
    found = model.tokens.map
    assert found.values.shape == (3, 4, 4) and float(found.values.std()) > 0
    assert ("by norm" in found.says) == (settings is BY_NORM)


def test_rows_in_the_order_of_cosmos_are_chosen_for_each_sample():
    """There a sequence is [T, H, W, B, K], and only the number of samples tells."""
    model = Model(**{**BY_NORM, "salient_layers": "feed_forward"})
    guide = model.diffusion_model.get_submodule("blocks.0.ffn.0").guide
    guide.tokens.samples = 2
    x = torch.randn(3, 4, 4, 2, WIDTH)
    rows = guide(x).salient
    norms = x.flatten(0, 2).norm(dim=2)
    assert {(int(row) // 2, int(row) % 2) for row in rows} == {
        (int(place), sample) for sample in range(2) for place in norms[:, sample].topk(12).indices
    }
    five = torch.randn(2, 3, 4, 4, WIDTH)
    assert set(guide(five).salient.tolist()) == set(guide(five.flatten(1, 3)).salient.tolist())


@pytest.fixture
def short_attention(monkeypatch):
    """Attention in 8 bit takes the sequences and heads of these small models."""
    monkeypatch.setattr(attention_support, "LEAST_TOKENS", 16)
    monkeypatch.setattr(attention_support, "HEAD_SIZES", (WIDTH // HEADS,))


@pytest.mark.parametrize(
    "settings",
    [BY_NORM, BY_ATTENTION, GROUPS, {"protected_steps": (1, 1)}, {"protected_steps": (1, 1), "attention": "8bit"}],
    ids=["norm", "attention", "groups", "protected", "8bit"],
)
def test_a_compiled_network_has_one_graph_that_looks_and_one_that_does_not(settings, short_attention):
    torch._dynamo.reset()
    plain, compiled, counter = Model(**settings), Model(**settings), CompileCounter()
    network = compiled.diffusion_model
    for module in network.modules():
        if isinstance(module, Guided):
            module.told = None
    compiled.diffusion_model = torch.compile(network, backend=counter)
    for step in range(4):
        for uuid, kind in (("a", 0), ("b", 1)):
            given = (step, (uuid,), (kind,))
            assert torch.equal(plain(*given, seed=step), compiled(*given, seed=step))
    assert counter.frame_count <= 2
    assert [room.profiled for room in compiled.tokens.rooms.values()] == [
        room.profiled for room in plain.tokens.rooms.values()
    ]


def output_of(step=1, previous=None, **settings):
    """What a model gives, and how often the attention of another node ran in it."""
    model, ran = Model(**settings), []

    def other(function, *args, **kwargs):
        ran.append(args[1].shape[1])
        return function(*args, **kwargs)

    return model, model(step, **{"optimized_attention_override": other}), ran


@pytest.mark.usefixtures("short_attention")
def test_long_self_attention_runs_in_8_bit_and_the_rest_as_another_node_has_it():
    _, exact, ran = output_of()
    assert ran == [48, TEXT] * 2
    model, output, ran = output_of(attention="8bit")
    assert ran == [TEXT] * 2, "the other node has the cross-attention"
    assert 1e-5 < (output - exact).norm() / exact.norm() < 0.06  # mostly of activations that round to other 4 bits
    assert [one.last for one in model.tokens.attending.values()] == ["", ""] and not model.tokens.attention_seen()


@pytest.mark.usefixtures("short_attention")
def test_protected_steps_have_attention_in_16_bit():
    settings = {"attention": "8bit", "protected_steps": (1, 0)}
    _, _, ran = output_of(0, **settings)
    assert ran == [48, TEXT] * 2
    _, _, ran = output_of(1, **settings)
    assert ran == [TEXT] * 2


@pytest.mark.usefixtures("short_attention")
def test_attention_in_8_bit_is_seen_as_before():
    plain, fast = Model(**BY_ATTENTION), Model(**BY_ATTENTION, attention="8bit")
    plain(0), fast(0)
    rooms = [next(iter(model.tokens.rooms.values())) for model in (plain, fast)]
    states = [room.blocks["blocks.0"].received for room in rooms]
    assert torch.equal(*states) and bool(states[0].any())


def test_short_attention_stays_in_16_bit_and_says_so():
    model, _, ran = output_of(attention="8bit")
    assert ran == [48, TEXT] * 2
    assert model.tokens.attention_seen() == ("in the last run 2 stayed in 16 bit: fewer than 512 tokens",)
    told = {one.name: (one.runs, one.reason) for one in model.plan.attentions}
    assert told["blocks.0.self_attn"][0] == "8bit" and told["blocks.0.cross_attn"] == (
        "16bit",
        "cross-attention to text tokens",
    )


def test_arguments_of_comfyuis_attention_are_read(short_attention):
    attending = Attending("8bit", Flags())
    q, k, v = (torch.randn(2, 40, WIDTH) for _ in range(3))
    flat = attend(attending, q, k, v, HEADS)
    heads_first = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
    whole = attend(attending, *heads_first, HEADS, skip_reshape=True, skip_output_reshape=True)
    assert torch.equal(flat, whole.transpose(1, 2).flatten(2))
    assert attend(attending, q, k, v, HEADS, scale=0.1) is not None and attending.last == ""
    assert attend(attending, q, k, v, HEADS, low_precision_attention=False) is None and "precision" in attending.last
    assert attend(attending, q, k, v, HEADS, mask=torch.zeros(2, 40, 40)) is None and "masked" in attending.last
    assert attend(attending, q, k, v, HEADS, mask=torch.ones(2, 1, 40, dtype=torch.bool)) is not None
