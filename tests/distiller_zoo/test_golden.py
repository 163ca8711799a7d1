"""Every reference case of every method that has an adapter, in both precisions.

GOLDEN_DIR names another folder of the same form; a method without an adapter is skipped by name.
"""

import numpy as np
import pytest
import torch

from tests.adapters import ADAPTERS, Case, index

INDEX = index()
TOLERANCE = {  # rtol, atol of losses and outputs, atol of gradients
    torch.float64: (1e-9, 1e-11, 1e-11),
    torch.float32: (1e-4, 1e-6, 1e-4),
}


def name_of(entry) -> str:
    return f"{entry['method']}-{entry['case']}"


def subject_of(entry, dtype):
    if entry["method"] not in ADAPTERS:
        pytest.skip(f"no adapter for {entry['method']}")
    torch.manual_seed(0)
    case = Case(entry, dtype)
    return case, ADAPTERS[entry["method"]](case)


def assert_equal(what, got, case, entry):
    """max|got - e| <= rtol * max|e| + atol"""
    rtol, atol, grad_atol = TOLERANCE[case.dtype]
    atol = grad_atol if what.startswith("grad/") else atol
    rtol, atol = max(rtol, entry.get("rtol", 0)), max(atol, entry.get("atol", 0))
    wanted = case.expected(what)
    got = np.asarray(got.detach().double().numpy())
    assert got.reshape(-1).shape == wanted.reshape(-1).shape, f"{what}: {got.shape}"
    got = got.reshape(wanted.shape)
    worst = np.abs(got - wanted).max(initial=0)
    allowed = rtol * np.abs(wanted).max(initial=0) + atol
    assert worst <= allowed, f"{what}: off by {worst:.3g}, allowed {allowed:.3g}"


def gradient(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("entry", INDEX["cases"], ids=name_of)
def test_equals_reference(entry, dtype):
    if dtype == torch.float32 and not entry["float32_ok"]:
        pytest.skip("the reference itself is off in single precision")
    case, subject = subject_of(entry, dtype)
    results = subject.call()
    if "loss" in results and results["loss"].requires_grad:
        results["loss"].backward()
    results |= {f"grad/{name}": gradient(case[name]) for name in entry["student_inputs"]}
    results |= {f"grad/state/{name}": gradient(p) for name, p in subject.trained.items()}
    results |= {f"after/{name}": value.clone() for name, value in subject.state().items()}
    if "loss_2" in entry["expected"]:
        results["loss_2"] = subject.call()["loss"]

    assert entry["expected"], "a case without expectations tests nothing"
    missing = set(entry["expected"]) - results.keys()
    assert not missing, f"the adapter does not give {sorted(missing)}"
    for what in entry["expected"]:
        assert_equal(what, results[what], case, entry)


@pytest.mark.parametrize("entry", INDEX["reference_nonfinite"], ids=name_of)
def test_is_finite_where_the_reference_is_not(entry):
    case, subject = subject_of(entry, torch.float64)
    loss = subject.call()["loss"]
    loss.backward()
    assert loss.isfinite()
    for name in entry["student_inputs"]:
        assert gradient(case[name]).isfinite().all(), name
    if "log_domain_loss" in entry:
        np.testing.assert_allclose(loss.item(), entry["log_domain_loss"], rtol=1e-9, atol=1e-11)
