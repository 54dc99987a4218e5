"""Muon in float32, against torch's in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from training.pretraining.optimizer import Muon


def parameter(*shape: int) -> nn.Parameter:
    made = nn.Parameter(torch.randn(*shape))
    made.grad = torch.randn(*shape)
    return made


def test_muon_takes_the_steps_of_torchs() -> None:
    torch.manual_seed(0)
    for shape in ((64, 48), (32, 96)):
        ours = parameter(*shape)
        theirs = nn.Parameter(ours.detach().clone())
        began = ours.detach().clone()
        muon = Muon([ours], lr=0.01, weight_decay=0.1, turns=5)
        reference = torch.optim.Muon(
            [theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=5
        )
        for _ in range(3):
            theirs.grad = ours.grad = torch.randn(*shape)
            muon.step()
            reference.step()
        step, expected = ours.detach() - began, theirs.detach() - began
        assert torch.cosine_similarity(step.flatten(), expected.flatten(), dim=0) > 0.999
        torch.testing.assert_close(step.norm(), expected.norm(), rtol=0.02, atol=0.0)


def test_gates_are_orthogonalised_apart() -> None:
    torch.manual_seed(0)
    matrix, gates = parameter(20, 30), parameter(3 * 16, 40)
    began = gates.detach().clone()
    muon = Muon([matrix], gates=[gates], lr=1.0, weight_decay=0.0, turns=5)
    assert gates.grad is not None
    gates.grad[:16] *= 100.0  # one gate's large gradient leaves the others' steps as they are
    muon.step()
    for step in (gates.detach() - began).chunk(3):
        singular = torch.linalg.svdvals(step) / (0.2 * 40**0.5)
        assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    untouched = parameter(4, 4)
    before, untouched.grad = untouched.detach().clone(), None
    Muon([untouched], lr=1.0, weight_decay=1.0, turns=5).step()
    assert torch.equal(untouched, before)
