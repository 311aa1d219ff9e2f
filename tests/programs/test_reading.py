"""What is read off a program's text, by programs small enough to count by hand."""

import pytest

from benchmarks.programs import reading

# A TPU's: memory S(1) is a core's own, tiles pad [3,3,16,16] eightfold.
TPU = """
HloModule jit_update

ENTRY %main.1 (g.1: f32[3,3,16,16], m.1: bf16[1024]) -> (f32[3,3,16,16], f32[]) {
  %constant.1 = f32[]{:T(128)} constant(1)
  %g.1 = f32[3,3,16,16]{3,2,1,0:T(8,128)} parameter(0), metadata={op_name="gradients[0]"}
  %m.1 = bf16[1024]{0:T(1024)} parameter(1), metadata={op_name="state[0].mu"}
  %start = (f32[3,3,16,16]{3,2,1,0:T(8,128)S(1)}, f32[3,3,16,16]{3,2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%g.1)
  %copy-done = f32[3,3,16,16]{3,2,1,0:T(8,128)S(1)} copy-done(%start)
  %slice-start = ((bf16[1024]{0:T(1024)}), bf16[512]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%m.1)
  %slice-done = bf16[512]{0:T(1024)S(1)} slice-done(%slice-start)
  %fusion = f32[]{:T(128)S(6)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%fused_computation
  %scaled = f32[]{:T(128)S(6)} multiply(%fusion, %constant.1)
  %bitcast = f32[9,16,16]{2,1,0:T(8,128)} bitcast(%g.1)
  %fusion.1 = f32[3,3,16,16]{3,2,1,0:T(8,128)} fusion(%bitcast, %scaled), kind=kLoop, calls=%fused_computation.1
  ROOT %tuple = (f32[3,3,16,16]{3,2,1,0:T(8,128)}, f32[]{:T(128)S(6)}) tuple(%fusion.1, %scaled)
}
"""
PADDED = 4 * 3 * 3 * 16 * 128

GPU = """
HloModule jit_update

ENTRY %main.1 (g.1: f32[64,32], h.1: f32[32]) -> f32[64,32] {
  %g.1 = f32[64,32]{1,0} parameter(0), metadata={op_name="gradients[0]"}
  %h.1 = f32[32]{0} parameter(1), metadata={op_name="gradients[1]"}
  %input_reduce_fusion = (f32[], f32[]) fusion(%g.1), kind=kInput, calls=%fused_reduce
  %get-tuple-element = f32[] get-tuple-element(%input_reduce_fusion), index=0
  %all-reduce-start = (f32[], f32[8,2]{1,0}, /*index=2*/bf16[3]{0}) all-reduce-start(%get-tuple-element, %h.1)
  %all-reduce-done = (f32[], f32[8,2]{1,0}, bf16[3]{0}) all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[4]{0}, f32[8]{0}) all-gather-start(%h.1)
  %all-gather-done = f32[8]{0} all-gather-done(%all-gather-start)
  ROOT %loop_fusion = f32[64,32]{1,0} fusion(%g.1, %get-tuple-element), kind=kLoop, calls=%fused
}
"""


def test_a_tpus_fast_memory_does_not_count():
    program = reading.instructions(TPU)
    assert reading.kernels(program) == 2
    assert reading.copies(program) == 2
    gradients = reading.parameters(program, "gradients")
    assert [g.results[0].padded_bytes for g in gradients] == [PADDED]
    # Read by the copy and, under another name, by the last kernel.
    assert reading.traffic(program, gradients).read == 2 * PADDED
    # Half of the moments, in a tile of 1,024, and the constant.
    assert reading.traffic(program).read == 2 * PADDED + 2 * 1024 + 4
    assert reading.traffic(program).written == PADDED


def test_a_gpus_kernels_and_collectives():
    program = reading.instructions(GPU)
    assert reading.kernels(program) == 2
    assert reading.traffic(program, reading.parameters(program, "gradients[0]")).read == 2 * 4 * 64 * 32
    assert reading.collectives(program) == [
        ("all-reduce", 3, 4 + 4 * 16 + 2 * 3),
        ("all-gather", 1, 4 * 8),
    ]


@pytest.mark.parametrize("program", [TPU, GPU])
def test_instructions_come_in_their_order(program):
    names = [instruction.name for instruction in reading.instructions(program)]
    assert names == [
        line.split(" = ")[0].split("%")[1] for line in program.splitlines() if line.startswith("  ")
    ]
