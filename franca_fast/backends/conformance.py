"""Every module of every backend beside the protocol of its operator: mypy compares them.

Nothing imports this file. A module that a backend gains is added here, which a test sees to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import franca_fast.backends.cpu.adamw_update as cpu_adamw
    import franca_fast.backends.cpu.clustering_cross_entropy as cpu_loss
    import franca_fast.backends.cpu.sinkhorn as cpu_sinkhorn
    import franca_fast.backends.cpu.swiglu as cpu_swiglu
    import franca_fast.backends.cpu.varlen_attention as cpu_attention
    import franca_fast.backends.cpu.weight_norm_scores as cpu_weight_norm
    import franca_fast.backends.cuda.adamw_update as cuda_adamw
    import franca_fast.backends.cuda.clustering_cross_entropy as cuda_loss
    import franca_fast.backends.cuda.prototype_scores as cuda_scores
    import franca_fast.backends.cuda.sinkhorn as cuda_sinkhorn
    import franca_fast.backends.cuda.streamed_clustering as cuda_streamed
    import franca_fast.backends.cuda.varlen_attention as cuda_attention
    import franca_fast.backends.cuda.weight_norm_scores as cuda_weight_norm
    import franca_fast.backends.torch.adamw_update as torch_adamw
    import franca_fast.backends.torch.clustering_cross_entropy as torch_loss
    import franca_fast.backends.torch.prototype_scores as torch_scores
    import franca_fast.backends.torch.sinkhorn as torch_sinkhorn
    import franca_fast.backends.torch.streamed_clustering as torch_streamed
    import franca_fast.backends.torch.swiglu as torch_swiglu
    import franca_fast.backends.torch.varlen_attention as torch_attention
    import franca_fast.backends.torch.weight_norm_scores as torch_weight_norm
    import franca_fast.backends.triton.adamw_update as triton_adamw
    import franca_fast.backends.triton.clustering_cross_entropy as triton_loss
    import franca_fast.backends.triton.sinkhorn as triton_sinkhorn
    import franca_fast.backends.triton.streamed_clustering as triton_streamed
    import franca_fast.backends.triton.swiglu as triton_swiglu
    import franca_fast.backends.triton.varlen_attention as triton_attention
    import franca_fast.backends.triton.weight_norm_scores as triton_weight_norm
    from franca_fast.backends import contracts

    sinkhorn: list[contracts.Sinkhorn] = [
        cpu_sinkhorn,
        cuda_sinkhorn,
        torch_sinkhorn,
        triton_sinkhorn,
    ]
    prototype_scores: list[contracts.PrototypeScores] = [cuda_scores, torch_scores]
    weight_norm_scores: list[contracts.WeightNormScores] = [
        cpu_weight_norm,
        cuda_weight_norm,
        torch_weight_norm,
        triton_weight_norm,
    ]
    clustering_cross_entropy: list[contracts.ClusteringCrossEntropy] = [
        cpu_loss,
        cuda_loss,
        torch_loss,
        triton_loss,
    ]
    streamed_clustering: list[contracts.StreamedClustering] = [
        cuda_streamed,
        torch_streamed,
        triton_streamed,
    ]
    varlen_attention: list[contracts.VarlenAttention] = [
        cpu_attention,
        cuda_attention,
        torch_attention,
        triton_attention,
    ]
    swiglu: list[contracts.SwiGLU] = [cpu_swiglu, torch_swiglu, triton_swiglu]
    adamw_update: list[contracts.AdamWUpdate] = [
        cpu_adamw,
        cuda_adamw,
        torch_adamw,
        triton_adamw,
    ]
