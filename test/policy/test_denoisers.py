"""What every denoiser of the table does, and what is special to Transformer and perceptron."""

import pytest
import torch

from diffusion_policy_ros.policy.denoisers import DENOISERS, Condition, Sizes
from diffusion_policy_ros.policy.denoisers.mlp import MLP, MLPSettings
from diffusion_policy_ros.policy.denoisers.transformer import Transformer, TransformerSettings
from diffusion_policy_ros.policy.denoisers.unet1d import SinusoidalEmbedding, UNet1DSettings

SETTINGS = {
    "unet1d": UNet1DSettings(down_dims=(16, 32), n_groups=4, diffusion_step_embed_dim=16),
    "transformer": TransformerSettings(n_layer=2, n_emb=32, p_drop_attn=0.0),
    "mlp": MLPSettings(hidden_size=32, num_layers=3),
}


def sizes_and_condition(how, batch, horizon, action):
    """What a denoiser of this conditioning is built for, and a random condition of that sort."""
    match how:
        case "global":
            condition = Condition(torch.randn(batch, 11))
            return Sizes(action, horizon, global_cond=11), condition
        case "local":
            condition = Condition(local_cond=torch.randn(batch, horizon, 5))
            return Sizes(action, horizon, local_cond=5), condition
        case "tokens":
            condition = Condition(tokens=torch.randn(batch, 3, 5))
            return Sizes(action, horizon, tokens=3, token_dim=5), condition
    return Sizes(action, horizon), Condition()


CASES = [(name, how) for name in DENOISERS for how in SETTINGS[name].conditionings]


def test_every_denoiser_s_settings_are_tested():
    """A new line of the table needs a line here."""
    assert DENOISERS.keys() == SETTINGS.keys()


@pytest.mark.parametrize(("name", "how"), CASES)
@pytest.mark.parametrize("size", [(1, 8, 2), (5, 16, 7)])
def test_every_denoiser_keeps_the_shape_and_lets_gradients_through(name, how, size):
    """(B, H, A) in, (B, H, A) out, and every weight takes part."""
    sizes, condition = sizes_and_condition(how, *size)
    net = DENOISERS[name](sizes, SETTINGS[name])
    out = net(torch.randn(*size), torch.arange(size[0]), condition)
    assert out.shape == size
    out.square().mean().backward()
    assert all(weight.grad is not None for weight in net.parameters())


@pytest.mark.parametrize(("name", "how"), CASES)
def test_every_denoiser_heeds_step_and_condition_and_treats_entries_alone(name, how):
    """Another step or condition gives another answer; another entry of the batch does not."""
    torch.manual_seed(0)
    sizes, condition = sizes_and_condition(how, 3, 8, 2)
    net = DENOISERS[name](sizes, SETTINGS[name]).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
        sample, step = torch.randn(3, 8, 2), torch.tensor([1, 5, 9])
        out = net(sample, step, condition)
        assert not torch.allclose(out, net(sample, step + 50, condition), atol=1e-3)
        if how != "inpainting":
            assert not torch.allclose(out, net(sample, step, condition.hidden()), atol=1e-3)
        second = Condition(*(None if part is None else part[1:2] for part in condition))
        alone = net(sample[1:2], step[1:2], second)
    torch.testing.assert_close(out[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "how"), [case for case in CASES if case[1] != "local"])
def test_conditions_of_another_size_are_refused(name, how):
    """Sizes are named instead of broadcast."""
    sizes, condition = sizes_and_condition(how, 1, 8, 2)
    net, wrong = DENOISERS[name](sizes, SETTINGS[name]), Condition(torch.zeros(1, 3))
    if name == "transformer" and how == "tokens":
        wrong = Condition(tokens=torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"condition of size 3, built for \d"):
        net(torch.zeros(1, 8, 2), torch.zeros(1), wrong)


def transformer(**settings):
    """One of 8 steps that attends to 3 frames, in eval mode, with weights that matter."""
    torch.manual_seed(0)
    settings = TransformerSettings(n_layer=2, n_emb=32, p_drop_attn=0.0, **settings)
    sizes = Sizes(2, 8, tokens=3 if settings.time_as_cond else 0, token_dim=5)
    if not settings.time_as_cond:
        sizes = Sizes(2, 8)
    net = Transformer(sizes, settings).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return net


def changed_steps(net, change):
    """Which steps of the prediction change when an input does."""
    sample, tokens = torch.randn(1, 8, 2), torch.randn(1, 3, 5)
    condition = Condition(tokens=tokens if net.time_as_cond else None)
    with torch.inference_mode():
        before = net(sample, torch.tensor([4]), condition)
        change(sample, tokens)
        after = net(sample, torch.tensor([4]), condition)
    return ((after - before).abs().amax(-1)[0] > 1e-6).tolist()


def later(sample, tokens):
    """Change the sixth action."""
    sample[:, 5] += 1


def newest(sample, tokens):
    """Change the third observed frame."""
    tokens[:, 2] += 1


@pytest.mark.parametrize("n_cond_layers", [0, 2])
def test_causal_attention_looks_at_nothing_later(n_cond_layers):
    """An action sees no later action; with a perceptron as encoder, no frame observed later."""
    net = transformer(n_cond_layers=n_cond_layers)
    assert changed_steps(net, later) == [False] * 5 + [True] * 3
    if not n_cond_layers:  # encoded together, all frames are known to each
        assert changed_steps(net, newest) == [False] * 2 + [True] * 6


def test_full_attention_looks_at_everything():
    """Without the masks each action changes all."""
    net = transformer(causal_attn=False)
    assert changed_steps(net, later) == changed_steps(net, newest) == [True] * 8


def test_an_encoder_alone_is_causal_too():
    """Where the step is the sample's first token, the actions follow it."""
    net = transformer(time_as_cond=False)
    assert changed_steps(net, later) == [False] * 5 + [True] * 3
    names = [name for name, _ in net.named_parameters()]
    assert not any("cond" in name or "multihead" in name for name in names)


def test_transformers_refuse_more_steps_than_they_have_places_for():
    """There is no position for a ninth."""
    with pytest.raises(ValueError, match="9 tokens, built for up to 8"):
        transformer()(torch.zeros(1, 9, 2), torch.zeros(1), Condition(tokens=torch.zeros(1, 3, 5)))


def test_settings_know_their_mistakes():
    """Heads that do not divide, odd sizes."""
    problems = list(TransformerSettings(n_emb=33, n_head=4).problems())
    assert [p.key for p in problems] == ["n_emb", "n_emb"]
    assert [p.key for p in MLPSettings(diffusion_step_embed_dim=5).problems()] == [
        "diffusion_step_embed_dim"
    ]


def test_the_perceptron_has_the_layers_that_it_is_told():
    """By default four hidden ones of 256: parameters counted by hand."""
    net = MLP(Sizes(2, 8, global_cond=10), MLPSettings())
    count = sum(weight.numel() for weight in net.parameters())
    assert count == (16 + 64 + 10 + 1) * 256 + 3 * 257 * 256 + 257 * 16


@pytest.mark.parametrize("dim", [0, 2, 5])
def test_a_step_that_cannot_be_embedded_is_refused(dim):
    """Two numbers have one frequency, which cannot fall; odd ones no cosine for each sine."""
    with pytest.raises(ValueError, match=f"{dim} numbers: give an even number"):
        SinusoidalEmbedding(dim)
    assert SinusoidalEmbedding(4).frequencies.tolist() == pytest.approx([1.0, 1e-4])
