"""The training configuration: every key, its default and what it means.

The names are those that users of DINOv2 and Franca already write, so their YAML files load
unchanged; keys that are ours say so. What a key accepts stands beside it (see `setting`), what
must fit together in `config/checks.py`. Values are plain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from franca_fast.config.setting import setting
from franca_fast.data.decoding import MAX_IMAGE_PIXELS
from franca_fast.data.settings import CropSettings
from franca_fast.models import ARCHITECTURES, PROJECTIONS, default_nesting_dims

_DTYPES = ("fp32", "fp16", "bf16")


@dataclass
class ModelConfig:
    """Where a run starts from."""

    # What this run starts from, at step 0 and with a fresh optimizer: an earlier run (its folder,
    # or one of its checkpoints/<step> folders), of which it takes student, teacher and heads; or a
    # file of weights (.pth, .safetensors), whose network both become. A file may hold no heads;
    # they are random then.
    WEIGHTS: str = ""


@dataclass
class MixedPrecisionConfig:
    """Types in which one sharded module travels between processes: fp32, fp16 or bf16.

    The type of the computation is `autocast`'s. A 16-bit param_dtype means that 16-bit type, and a
    16-bit reduce_dtype other than it means fp32; without a 16-bit autocast all is fp32.
    """

    # Gathered parameters; reduced gradients; there are no buffers to send.
    param_dtype: str = setting("fp16", choices=_DTYPES)
    reduce_dtype: str = setting("fp16", choices=_DTYPES)
    buffer_dtype: str = setting("fp32", choices=_DTYPES)


@dataclass
class ShardedModuleConfig:
    """How one module is sharded over processes, where `train.parallel` shards at all."""

    # SHARD_GRAD_OP keeps gathered parameters from the forward to the backward pass; FULL_SHARD
    # frees them and gathers them twice (prototypes stay in both; the teacher's backbone never).
    sharding_strategy: str = setting("SHARD_GRAD_OP", choices=("SHARD_GRAD_OP", "FULL_SHARD"))
    mixed_precision: MixedPrecisionConfig = field(default_factory=MixedPrecisionConfig)


def _head_sharding() -> ShardedModuleConfig:
    return ShardedModuleConfig(mixed_precision=MixedPrecisionConfig(reduce_dtype="fp32"))


@dataclass
class TeacherPrecisionConfig:
    """Sharding of the teacher's modules."""

    backbone: ShardedModuleConfig = field(default_factory=ShardedModuleConfig)
    dino_head: ShardedModuleConfig = field(default_factory=ShardedModuleConfig)
    ibot_head: ShardedModuleConfig = field(default_factory=ShardedModuleConfig)


@dataclass
class StudentPrecisionConfig:
    """Sharding of the student's modules; the heads' gradients are reduced in fp32."""

    backbone: ShardedModuleConfig = field(default_factory=ShardedModuleConfig)
    dino_head: ShardedModuleConfig = field(default_factory=_head_sharding)
    ibot_head: ShardedModuleConfig = field(default_factory=_head_sharding)


@dataclass
class PrecisionConfig:
    """Number formats. Parameters, optimizer and EMA are always float32."""

    # Scale the loss while the forward pass runs in fp16; bf16 and fp32 need no scaler.
    grad_scaler: bool = True
    # Ours: type of the matrix products, auto, bf16, fp16 or fp32. "auto" is bf16 on GPUs that have
    # it (fp16 on those that do not) and on CPUs with AMX or AVX512_BF16, fp32 elsewhere.
    autocast: str = setting("auto", choices=("auto", "bf16", "fp16", "fp32"))
    teacher: TeacherPrecisionConfig = field(default_factory=TeacherPrecisionConfig)
    student: StudentPrecisionConfig = field(default_factory=StudentPrecisionConfig)


@dataclass
class HeadConfig:
    """The sizes of a nested head."""

    # Prototypes of the widest nested head; narrower ones have fewer in proportion.
    head_n_prototypes: int = setting(65536, above=0)
    # Width of the features that meet the prototypes.
    head_bottleneck_dim: int = setting(256, above=0)
    # Layers of the projection MLP, and their width.
    head_nlayers: int = setting(3, above=0)
    head_hidden_dim: int = setting(2048, above=0)


@dataclass
class DinoConfig(HeadConfig):
    """The image-level loss, its head, and the nesting of both heads."""

    # Weight of the image-level loss; 0 leaves it and its head out.
    loss_weight: float = setting(1.0, at_least=0)
    # Weight of the KoLeo regulariser on the global crops' CLS tokens; 0 leaves it out.
    koleo_loss_weight: float = setting(0.1, at_least=0)
    # Ours: KoLeo seeks the nearest neighbour among the images of all ranks, so that the loss does
    # not depend on their number; false takes each rank's own images, as DINOv2 and Franca do.
    koleo_over_ranks: bool = True
    # Nested (Matryoshka) heads; false is one head on the full width, as in DINOv2.
    MRL: bool = True
    # Ours: the nested widths, increasing, the last one the width of the backbone; null is
    # d/16, d/8, d/4, d/2, d.
    nesting_dims: list[int] | None = None
    # Ours: what each nested head sees: the first m features ("slice", the paper) or all of them
    # through a linear map to m ("full", the July 2025 release).
    projection: str = setting("slice", choices=PROJECTIONS)
    # Ours: L2-normalise the bottleneck, as DINOv2's head does and Franca's does not.
    normalize_bottleneck: bool = False


@dataclass
class IbotConfig(HeadConfig):
    """The patch-level loss, its head, and how many patches are masked."""

    # Weight of the patch-level loss; 0 leaves it and its head out.
    loss_weight: float = setting(1.0, at_least=0)
    # Share of the global crops that are masked at all.
    mask_sample_probability: float = 0.5
    # Smallest and largest share of masked patches in a masked crop, spread evenly over the batch.
    mask_ratio_min_max: list[float] = field(default_factory=lambda: [0.1, 0.65])
    # A head of its own for patches; false shares the image-level head.
    separate_head: bool = False


@dataclass
class TrainConfig:
    """Data, length, targets and the run itself."""

    # Images per process and micro-batch; the images of a step are this times the number of
    # processes times gradient_accumulation_steps, and the learning rate follows from them.
    batch_size_per_gpu: int = setting(64, above=0, resumable=True)
    # Ours: micro-batches whose gradients are averaged before the optimizer steps. The assignments
    # are balanced (Sinkhorn-Knopp), and KoLeo's neighbours sought, within each micro-batch, over
    # all processes: memory does not grow, but it is not the loss of one large batch.
    gradient_accumulation_steps: int = setting(1, above=0, resumable=True)
    # A folder of images, shards (path, brace range or glob), or a dataset string such as
    # "ImageNet:split=TRAIN:root=PATH:extra=PATH", "LAION:root=PATH" or "FashionMNIST:split=TRAIN".
    dataset_path: str = "ImageNet:split=TRAIN"
    # Where the run is written, unless given on the command line.
    output_dir: str = setting(".", resumable=True)
    # Epochs between checkpoints.
    saveckp_freq: int = setting(20, above=0, resumable=True)
    # Seed of the weights, the data order, the augmentation and stochastic depth.
    seed: int = setting(0, at_least=0)
    # Processes that decode images, at most one for each CPU; 0 decodes in the training process.
    # The batches do not depend on it.
    num_workers: int = setting(10, at_least=0, resumable=True)
    # Steps that count as one epoch, in every length given in epochs.
    OFFICIAL_EPOCH_LENGTH: int = setting(1250, above=0)
    # Accepted for DINOv2's sake; there is no data set cache to switch off.
    cache_dataset: bool = True
    # Targets: sinkhorn_knopp, or centering (softmax minus a running mean).
    centering: str = setting("centering", choices=("centering", "sinkhorn_knopp"))
    # Ours: the prototype scores of a step are "stored", or "streamed": recomputed block by block,
    # forward and backward, for little memory and more time. "auto" streams what would take more
    # than a quarter of the device's memory.
    scores: str = setting("auto", choices=("auto", "stored", "streamed"))
    # Which patches are masked. All three true is Franca's CyclicMask: everything but a block, and
    # all rolled around the image. use_inverse_block false masks the block itself; use_block_masking
    # false masks single patches at random.
    use_block_masking: bool = True
    use_inverse_block: bool = True
    roll: bool = True
    # Fine-tuning at a higher resolution. Starting from weights always means step 0 and a fresh
    # optimizer here, so this only refuses to begin without MODEL.WEIGHTS or
    # student.pretrained_weights; an interrupted run is resumed like any other.
    high_resolution_finetune: bool = False
    # Ours: length of the run in steps; null is optim.epochs * OFFICIAL_EPOCH_LENGTH.
    total_steps: int | None = setting(None, above=0)
    # Ours: auto (a GPU where there is one), cpu, cuda or cuda:<index>.
    device: str = setting("auto", resumable=True)
    # Ours: fewer threads while other programs use the cores; sums may then be rounded otherwise.
    fewer_threads_when_busy: bool = setting(False, resumable=True)
    # Ours: compile the student's and teacher's blocks with torch.compile.
    compile: bool = False
    # Ours: recompute the activations of the student's blocks in the backward pass, for less memory.
    activation_checkpointing: bool = setting(False, resumable=True)
    # Ours: how several processes share the work. "replicated": each holds everything and gradients
    # are averaged. "sharded": each holds its rows of parameters, gradients, moments and teacher
    # (FSDP2). "auto" shards students of more than 300 million parameters.
    parallel: str = setting("auto", choices=("auto", "replicated", "sharded"), resumable=True)
    # Ours: processes that share one sharded copy, for instance those of one machine (HSDP); it
    # divides their number. null is all of them.
    shard_ranks: int | None = setting(None, above=0, resumable=True)
    # Ours: minutes after which a process that does not answer is given up and the run stops.
    timeout_minutes: float = setting(10.0, above=0, resumable=True)
    # Ours: steps between checkpoints; null is saveckp_freq epochs. One is also written whenever
    # checkpoint_minutes have passed since the last (0: never for that reason), on a signal, and at
    # the end. The newest checkpoint_keep stay.
    checkpoint_every: int | None = setting(None, above=0, resumable=True)
    checkpoint_minutes: float = setting(15.0, at_least=0, resumable=True)
    checkpoint_keep: int = setting(3, above=0, resumable=True)
    # Ours: steps between progress lines, TensorBoard points and diagnostics of the targets.
    log_every: int = setting(10, above=0, resumable=True)
    # Ours: also write TensorBoard files, where tensorboard is installed.
    tensorboard: bool = setting(True, resumable=True)
    # Ours: also send them to this project of Weights & Biases; empty sends nothing anywhere.
    wandb: str = setting("", resumable=True)
    # Ours: stop after this many steps in a row with a non-finite loss or gradient.
    max_nonfinite_steps: int = setting(20, above=0, resumable=True)
    # Ours: samples of a stream of shards that are shuffled together, at least.
    shuffle_buffer: int = setting(100_000, above=0)
    # Ours: stop when more than this share of the samples cannot be read.
    max_bad_fraction: float = setting(0.1, at_least=0, at_most=1, resumable=True)
    # Ours: images of more pixels are skipped without decoding them.
    max_image_pixels: int = setting(MAX_IMAGE_PIXELS, above=0)
    # Ours: how levels of more than 8 bits become 0 to 255: "full" maps the whole range of the type,
    # "minmax" that of each image, "LOW:HIGH" the range from LOW to HIGH.
    levels: str = "full"
    # Ours: let `pipe:` in dataset_path run commands.
    allow_pipe: bool = False


@dataclass
class StudentConfig:
    """The backbone; the teacher has the same, without stochastic depth."""

    # Name of the architecture, see `franca-fast models`.
    arch: str = setting("vit_large", choices=ARCHITECTURES)
    # Side of a patch in pixels; the crop sizes are multiples of it.
    patch_size: int = setting(16, above=0)
    # Stochastic depth: probability that a residual branch is left out; the same in all blocks, or
    # growing linearly from 0 in the first to this rate in the last.
    drop_path_rate: float = setting(0.3, at_least=0, below=1)
    drop_path_uniform: bool = True
    # Initial LayerScale.
    layerscale: float = setting(1.0e-5, at_least=0)
    # Ours: spread of the blocks' initial weights; 1 / sqrt(width) keeps the signal in narrow ones.
    init_std: float = setting(0.02, above=0)
    pos_embed_init_std: float = setting(0.02, above=0)
    # Backbone weights that student and teacher start from (.pth or .safetensors), the heads random
    # as in the released code; the names must all match.
    pretrained_weights: str = ""
    # mlp, swiglu or swiglufused (the last two are the same here).
    ffn_layer: str = setting("mlp", choices=("mlp", "swiglu", "swiglufused"))
    # Accepted for DINOv2's sake; blocks are never chunked here.
    block_chunks: int = 0
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    num_register_tokens: int = setting(0, at_least=0)
    # How position embeddings are resampled to another grid.
    interpolate_antialias: bool = False
    interpolate_offset: float = 0.1


@dataclass
class TeacherConfig:
    """The teacher: an exponential moving average, and the temperature of its targets."""

    # EMA momentum, from the first value to the second by a cosine.
    momentum_teacher: float = setting(0.992, at_least=0, at_most=1)
    final_momentum_teacher: float = setting(1.0, at_least=0, at_most=1)
    # Temperature of the targets, from the first value to the second over the warm-up epochs.
    warmup_teacher_temp: float = setting(0.04, above=0)
    teacher_temp: float = setting(0.07, above=0)
    warmup_teacher_temp_epochs: int = setting(30, at_least=0)


@dataclass
class OptimConfig:
    """AdamW and its schedules."""

    epochs: int = setting(100, above=0)
    # Weight decay, from the first value to the second by a cosine.
    weight_decay: float = setting(0.04, at_least=0)
    weight_decay_end: float = setting(0.4, at_least=0)
    # Peak learning rate at the batch size that scaling_rule names.
    base_lr: float = setting(0.004, at_least=0)
    # Peak learning rate as it is; 0 takes base_lr and scaling_rule.
    lr: float = setting(0.0, at_least=0)
    # sqrt_wrt_1024: base_lr * sqrt(global batch / 1024). linear_wrt_256: base_lr * batch / 256.
    scaling_rule: str = setting("sqrt_wrt_1024", choices=("sqrt_wrt_1024", "linear_wrt_256"))
    # Linear warm-up from 0, then a cosine to min_lr.
    warmup_epochs: int = setting(10, at_least=0)
    min_lr: float = setting(1.0e-6, at_least=0)
    # Largest gradient norm of the backbone and of each head, each on its own; 0 does not clip.
    clip_grad: float = setting(3.0, at_least=0)
    # The prototypes keep their initial values for this long.
    freeze_last_layer_epochs: int = setting(1, at_least=0)
    # Learning-rate factors of the patch embedding and, to the power of the depth, of the layers.
    patch_embed_lr_mult: float = setting(0.2, at_least=0)
    layerwise_decay: float = setting(0.9, at_least=0)
    adamw_beta1: float = setting(0.9, at_least=0, below=1)
    adamw_beta2: float = setting(0.999, at_least=0, below=1)


@dataclass
class CropsConfig:
    """Crops of an image: two global ones, and local ones that only the student sees."""

    # Range of the share of the image that a crop covers.
    global_crops_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])
    local_crops_number: int = 8
    local_crops_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    # Sides in pixels.
    global_crops_size: int = 224
    local_crops_size: int = 96


@dataclass
class AugmentationConfig:
    """Ours: what happens to a crop. The defaults are DINOv2's, see `data.CropSettings`."""

    # Range of width / height of the region that is cut out.
    aspect_ratio: list[float] = field(default_factory=lambda: list(CropSettings.aspect_ratio))
    # Probability of a mirror image.
    flip_probability: float = CropSettings.flip_probability
    # Colour jitter: its probability, and how far its four parts go.
    jitter_probability: float = CropSettings.jitter_probability
    brightness: float = CropSettings.brightness
    contrast: float = CropSettings.contrast
    saturation: float = CropSettings.saturation
    hue: float = CropSettings.hue
    # Probability of dropping all colour.
    greyscale_probability: float = CropSettings.greyscale_probability
    # Gaussian blur: range of its standard deviation in pixels, and its probability in the first
    # and the second global crop and in local crops.
    blur_sigma: list[float] = field(default_factory=lambda: list(CropSettings.blur_sigma))
    blur_probability_global: list[float] = field(
        default_factory=lambda: list(CropSettings.blur_probability_global)
    )
    blur_probability_local: float = CropSettings.blur_probability_local
    # Probability of inverting the bright pixels of the first and the second global crop, and from
    # which value on (of 255) a pixel is bright.
    solarize_probability_global: list[float] = field(
        default_factory=lambda: list(CropSettings.solarize_probability_global)
    )
    solarize_threshold: int = CropSettings.solarize_threshold


@dataclass
class EvaluationConfig:
    """Work at intervals during training."""

    # Steps between exports of the teacher, with the caller's evaluation of it if one was given;
    # 0 leaves both to the end.
    eval_period_iterations: int = setting(12500, at_least=0, resumable=True)
    # Ours: labelled images (a folder of class folders, shards, a dataset string) on which the
    # teacher is then evaluated by kNN, at every nested width: those to learn from, and those to
    # classify. Empty evaluates nothing.
    knn_train: str = setting("", resumable=True)
    knn_test: str = setting("", resumable=True)
    # Ours: further protocols by which the teacher is evaluated then, one text each: the name, its
    # data and its settings, such as "in-context train=voc/train test=voc/val k=30".
    protocols: list[str] | None = setting(None, resumable=True)


@dataclass
class Config:
    """The whole configuration of a pretraining run."""

    MODEL: ModelConfig = field(default_factory=ModelConfig)
    compute_precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """The nested widths m_1 < .. < m_H = d of all heads."""
        width = ARCHITECTURES[self.student.arch]["embed_dim"]
        if not self.dino.MRL:
            return (width,)
        if self.dino.nesting_dims is not None:
            return tuple(self.dino.nesting_dims)
        return default_nesting_dims(width)

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.train.total_steps or self.optim.epochs * self.train.OFFICIAL_EPOCH_LENGTH

    @property
    def checkpoint_every(self) -> int:
        """Steps between regular checkpoints."""
        train = self.train
        return train.checkpoint_every or train.saveckp_freq * train.OFFICIAL_EPOCH_LENGTH
