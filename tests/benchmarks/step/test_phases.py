"""Where a step's time goes: kinds of work, labels, overlapping kernels."""

import random
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step.phases import Piece, category, covered, kernels, operations


def test_the_optimizers_own_products_are_the_optimizers() -> None:
    """A product inside the label, at any depth, counts as the optimizer's; those before and after it do not."""
    a = torch.ones(8, 8)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        torch.mm(a, a)
        with record_function("optimizer"), record_function("clip"):
            torch.mm(a, a)
        torch.mm(a, a)
    found = [piece.optimizer for piece in operations(trace.events()) if piece.name == "aten::mm"]
    assert found == [False, True, False]


NAMES = {
    "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT": "matmul",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas": "matmul",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>(Params)": "matmul",
    "sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc": "matmul",
    "triton_tem_fused_addmm_0": "matmul",
    "aten::addmm": "matmul",
    "aten::mm": "matmul",
    "aten::bmm": "matmul",
    "mkl::_mkl_linear": "matmul",
    "aten::mkldnn_convolution": "matmul",
    "aten::convolution_backward": "matmul",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<96, 128, 64, 4>, false>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>": "normalisation",
    "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16>": "normalisation",
    "triton_red_fused__to_copy_add_native_layer_norm_backward_5": "normalisation",
    "aten::native_layer_norm": "normalisation",
    "triton_poi_fused_addmm_gelu_3": "elementwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>": "elementwise",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": "elementwise",
    "aten::gelu_backward": "elementwise",
    "## Call CompiledFxGraph fq2 ##": "elementwise",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
    "aten::_fused_adamw_": "optimizer",
    "Memcpy DtoD (Device -> Device)": "copies_and_casts",
    "Memset (Device)": "copies_and_casts",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>": "copies_and_casts",
    "void at::native::elementwise_kernel<128, 4, at::native::bfloat16_copy_kernel_cuda>": "copies_and_casts",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>>": "copies_and_casts",
    "aten::copy_": "copies_and_casts",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "gloo:all_reduce": "communication",
    "c10d::allreduce_": "communication",
    "backward": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_work_by_their_names(name: str) -> None:
    """Names of kernels and operations as profilers print them."""
    assert category(Piece(name, 1.0, False)) == NAMES[name]
    assert category(Piece(name, 1.0, True)) == "optimizer"


def event(name: str, start: float, end: float, *, label: bool = False, gpu: bool = True) -> SimpleNamespace:
    """The attributes of a profiler's event that are read. Times are in microseconds."""
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CUDA if gpu else DeviceType.CPU,
        is_user_annotation=label,
        is_async=False,
        cpu_parent=None,
        self_cpu_time_total=end - start,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )


def test_a_gpus_kernels_and_not_its_labels() -> None:
    """Labels on the device's timeline are not work; they mark the optimizer's kernels."""
    events = [
        event("aten::mm", 0, 5, gpu=False),
        event("nvjet_a", 10, 40),
        event("optimizer", 50, 90, label=True),
        event("forward", 0, 45, label=True),
        event("nvjet_b", 55, 60),
        event("nvjet_c", 95, 99),
    ]
    pieces = kernels(events)  # type: ignore[arg-type]
    assert pieces == [Piece("nvjet_a", 30e-6, False), Piece("nvjet_b", 5e-6, True), Piece("nvjet_c", 4e-6, False)]
    assert operations(events) == [Piece("aten::mm", 5e-6, False)]  # type: ignore[arg-type]


def test_time_that_streams_share_counts_once() -> None:
    draw = random.Random(0)
    for _ in range(100):
        intervals = [(start, start + draw.randrange(20)) for start in (draw.randrange(100) for _ in range(8))]
        assert covered(intervals) == len({second for start, end in intervals for second in range(start, end)})
    assert statistics.mean([covered([]), covered([(1, 1)])]) == 0
