"""The PTX that nvcc emits for the kernels of csrc/cuda, executed and compared with the definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest
from ptx import nvcc, replay
from ptx.case import Case, all_cases, execute, outcome
from ptx.machine import Program
from ptx.nvcc import Library
from ptx.syntax import Immediate, Instruction, Operand, PtxError, Vector

pytestmark = pytest.mark.skipif(nvcc.missing_tools() is not None, reason=f"PTX interpreter: {nvcc.missing_tools()}")

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_those_of_the_definition(case: Case) -> None:
    result = outcome(case)
    assert not result.mismatches
    assert result.kernels


def test_every_instruction_is_known() -> None:
    unknown = [error for name in replay.library().names for error in replay.library().program(name).decode_all()]
    assert not unknown, "\n".join(map(str, unknown))


def test_every_kernel_is_executed() -> None:
    executed = {kernel for case in CASES for kernel in outcome(case).kernels}
    assert executed == set(replay.library().names)


def kind_of(instruction: Instruction) -> str:
    return ".".join((instruction.opcode, *instruction.modifiers))


def inline_assembly(name: str, executed: bool) -> list[Instruction]:
    """What a kernel has from asm() in its source; if `executed`, in basic blocks that any case so far went through."""
    return [
        instruction
        for block in replay.library().program(name).blocks
        for instruction in block.instructions
        if instruction.in_inline_asm and (block.executed or not executed)
    ]


def test_all_kinds_of_inline_assembly_are_executed() -> None:
    """In every kernel: no other leg sees what is written inside asm()."""
    for case in CASES:
        outcome(case)
    missed = []
    for name in replay.library().names:
        kinds, executed = ({kind_of(i) for i in inline_assembly(name, executed=only)} for only in (False, True))
        missed += [f"{name}: {kind}" for kind in sorted(kinds - executed)]
    assert not missed, "\n".join(missed)


def planted(instruction: Instruction) -> list[Instruction]:
    """The instruction with two elements of a vector or two sources exchanged, or with another constant."""
    found = []

    def with_operand(index: int, operand: Operand) -> Instruction:
        operands = instruction.operands
        return dataclasses.replace(instruction, operands=(*operands[:index], operand, *operands[index + 1 :]))

    for index, operand in enumerate(instruction.operands):
        if isinstance(operand, Vector) and len(operand.elements) > 1:
            first, second, *rest = operand.elements
            found.append(with_operand(index, Vector((second, first, *rest))))
    if instruction.opcode == "cvt" and len(instruction.operands) == 3:
        destination, upper, lower = instruction.operands
        found.append(dataclasses.replace(instruction, operands=(destination, lower, upper)))
    if instruction.modifiers[:2] == ("async", "wait_group"):
        (count,) = instruction.operands
        assert isinstance(count, Immediate)
        found.append(with_operand(0, Immediate(str(int(count.text) + 1))))
    return found


def with_bug(kernels: Library, names: Iterable[str], kind: str, variant: int) -> Library:
    """The kernels, those named with the same bug in each instruction of a kind in inline assembly."""
    for name in names:
        kernel = kernels.program(name).kernel
        instructions = [
            planted(instruction)[variant] if instruction.in_inline_asm and kind_of(instruction) == kind else instruction
            for instruction in kernel.instructions
        ]
        kernels = kernels.replaced(name, Program(dataclasses.replace(kernel, instructions=instructions)))
    return kernels


def bugs() -> dict[tuple[str, int], list[Case]]:
    """Every bug that can be planted, by kind of instruction and variant, with the cases that execute the kind."""
    found: dict[tuple[str, int], list[Case]] = {}
    for case in CASES:
        instructions = [i for name in outcome(case).kernels for i in inline_assembly(name, executed=True)]
        for bug in {(kind_of(i), variant) for i in instructions for variant in range(len(planted(i)))}:
            found.setdefault(bug, []).append(case)
    return found


def notices(case: Case, kind: str, variant: int) -> bool:
    try:
        return bool(execute(case, with_bug(replay.library(), set(outcome(case).kernels), kind, variant)).mismatches)
    except PtxError:
        return True


def test_bugs_in_inline_assembly_are_noticed() -> None:
    """By one of the first cases that may: some bugs are none where the order of values does not matter."""
    unnoticed = [
        f"{kind}, variant {variant}"
        for (kind, variant), cases in bugs().items()
        if not any(notices(case, kind, variant) for case in cases[:4])
    ]
    assert not unnoticed, "\n".join(unnoticed)


def test_there_are_bugs_to_plant() -> None:
    mma = [f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32" for dtype in ("bf16", "f16")]
    fragments = {(kind, operand) for kind in mma for operand in range(4)}
    ldmatrix = {(f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16", 0) for transposed in ("", ".trans")}
    vectors = {("ld.global.nc.v4.u32", 0), ("st.global.wb.v4.u32", 0), ("cvt.rn.bf16x2.f32", 0)}
    assert bugs().keys() >= fragments | ldmatrix | vectors | {("cp.async.wait_group", 0)}
