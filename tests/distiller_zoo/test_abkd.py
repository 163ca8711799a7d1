"""--divergence ab, over KD, DKD and TTM, plain and standardised."""

from dataclasses import replace

import pytest
import torch

from cli.parse import parse_student
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.abkd import ab_from_log_probs
from distiller_zoo.rows import kl_from_log_probs
from distiller_zoo.views import LogitStandardization
from helper.errors import UserError
from tests.adapters import bare_setup, only_logits

OVER = ("kd", "dkd", "ttm")


def log_probs():
    return torch.randn(2, 5, 10).double().log_softmax(dim=2)


def test_its_family():
    """KL at (1, 0), the reverse KL at (0, 1), 4 times the squared Hellinger distance between."""
    log_p, log_q = log_probs()
    torch.testing.assert_close(
        ab_from_log_probs(log_p, log_q, 1, 0), kl_from_log_probs(log_p, log_q)
    )
    torch.testing.assert_close(
        ab_from_log_probs(log_p, log_q, 0, 1), kl_from_log_probs(log_q, log_p)
    )
    roots = (log_p / 2).exp() - (log_q / 2).exp()
    hellinger = roots.square().sum(dim=1) / 2
    torch.testing.assert_close(ab_from_log_probs(log_p, log_q, 0.5, 0.5), 4 * hellinger)


@pytest.mark.parametrize(("alpha", "beta"), [(0, 0.6), (0.6, 0), (0, 1), (1, 0), (0, 0)])
def test_continuous_where_a_power_is_0(alpha, beta):
    log_p, log_q = log_probs()
    near = ab_from_log_probs(log_p, log_q, alpha or 1e-6, beta or 1e-6)
    limit = ab_from_log_probs(log_p, log_q, alpha, beta)
    torch.testing.assert_close(near, limit, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("size", [0.0, 500.0, 1e4])
@pytest.mark.parametrize("name", OVER)
def test_finite_where_probabilities_underflow(name, size, alpha, beta):
    options = METHODS[name].Options(divergence="ab", ab_alpha=alpha, ab_beta=beta)
    method = METHODS[name](options, replace(bare_setup(), student=only_logits(torch.zeros(2, 10))))
    student = torch.linspace(-size, size, 10).expand(2, 10).clone().requires_grad_()
    teacher = torch.stack([torch.linspace(size, -size, 10), torch.zeros(10)])
    batch = Batch(None, torch.tensor([0, 9]), None)
    loss = method(only_logits(student), only_logits(teacher), batch)
    loss.backward()
    assert loss.isfinite()
    assert loss >= -1e-5
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("name", OVER)
def test_at_powers_1_and_0_it_is_the_method_itself(name, standardised):
    """But for T^2, which plain KD has with KL alone."""
    student, teacher = torch.randn(2, 4, 10).double()
    views = [LogitStandardization(LogitStandardization.Options(), bare_setup())] * standardised
    setup = replace(bare_setup(*views), student=only_logits(student))
    batch = Batch(None, torch.arange(4), None)
    own, other = (
        METHODS[name](METHODS[name].Options(**options), setup)(
            only_logits(student), only_logits(teacher), batch
        )
        for options in ({}, {"divergence": "ab", "ab_alpha": 1.0, "ab_beta": 0.0})
    )
    torch.testing.assert_close(other, own / 16 if name == "kd" and not standardised else own)


def test_what_is_published():
    def setting(line):
        options = parse_student(f"{line} --divergence ab".split())
        weights = options.gamma, options.alpha, options.beta, options.kd_T
        return weights, (options.ab_alpha, options.ab_beta)

    d = "--model_t resnet56 --model_s resnet20"
    assert setting("--distill kd") == ((1, 32, 0, 4), (0.5, 0.5))
    assert setting(f"--distill kd {d}") == ((1, 32, 0, 4), (0.8, 0.3))
    assert setting(f"--distill kd {d} --ab_beta 0.4 -a 64") == ((1, 64, 0, 4), (0.8, 0.4))
    assert setting(f"--distill kd {d} --logit_stand") == ((0.1, 9, 0, 2), (0.9, 0.3))
    c = "--distill ttm --model_t wrn_40_2 --model_s wrn_40_1"
    assert setting(c) == ((1, 0, 76, 4), (0.5, 0.6))
    assert setting(f"{c} --no_pair_defaults") == ((1, 0, 45, 4), (0.5, 0.5))
    assert setting("--distill dkd --model_t vgg13 --model_s vgg8") == ((1, 0, 1, 4), (0.5, 0.5))


def test_what_was_kept_stays_the_same_experiment():
    options = parse_student(["--distill", "kd"])
    assert {"divergence", "ab_alpha", "ab_beta"} <= options.idle


@pytest.mark.parametrize("name", OVER)
def test_powers_of_kl_are_refused(name):
    setup = replace(bare_setup(), student=only_logits(torch.zeros(2, 10)))
    with pytest.raises(ValueError, match="--ab_alpha and --ab_beta are of --divergence ab"):
        METHODS[name](METHODS[name].Options(ab_alpha=0.3), setup)


def test_a_divergence_of_nothing_is_refused():
    with pytest.raises(UserError, match="--divergence changes nothing here.* -a gives one to KD"):
        parse_student(["--distill", "crd", "--divergence", "ab"])
    options = parse_student(["--distill", "crd", "--divergence", "ab", "-a", "1"])
    assert (options.alpha, options.beta) == (1, 0.8)
