from hasten._adapters.base import (
    Adapter as Adapter,
    Guidance as Guidance,
    LatentLayout as LatentLayout,
    LatentSize as LatentSize,
    Moments as Moments,
    Prediction as Prediction,
    ScaleCost as ScaleCost,
    ScaleSchedule as ScaleSchedule,
)
from hasten._adapters.blocks import BlockOutputs as BlockOutputs, CacheDefaults as CacheDefaults
from hasten._adapters.conditions import (
    Channels as Channels,
    resize_clean as resize_clean,
    resize_features as resize_features,
    resize_mask as resize_mask,
)
from hasten._adapters.control import ControlNetwork as ControlNetwork
from hasten._adapters.decoders import (
    CausalDecoder as CausalDecoder,
    ChunkedDecoder as ChunkedDecoder,
    FrameDecoder as FrameDecoder,
    PictureDecoder as PictureDecoder,
    TiledDecoder as TiledDecoder,
)
from hasten._adapters.frames import (
    FrameAxis as FrameAxis,
    FrameLayer as FrameLayer,
    FrameMixing as FrameMixing,
    LayerKind as LayerKind,
    Rotary as Rotary,
    attention_names as attention_names,
    frame_layers as frame_layers,
    VideoTokens as VideoTokens,
    self_attentions as self_attentions,
    separable as separable,
)
from hasten._adapters.kv_cache import KVCache as KVCache
from hasten._adapters.layouts import (
    ImageLayout as ImageLayout,
    PackedLayout as PackedLayout,
    TokenLayout as TokenLayout,
    VideoLayout as VideoLayout,
    image_pixels as image_pixels,
    unknown_size as unknown_size,
)
from hasten._adapters.paths import (
    FlowPath as FlowPath,
    InvertedFlowPath as InvertedFlowPath,
    LogSigmaPath as LogSigmaPath,
    Path as Path,
    RatioFlowPath as RatioFlowPath,
    VariancePreservingPath as VariancePreservingPath,
)
from hasten._adapters.scan import ScannedUnits as ScannedUnits, UNetUnits as UNetUnits
from hasten._adapters.skips import (
    SkipJoint as SkipJoint,
    SkipResnet as SkipResnet,
    SkipTensor as SkipTensor,
    SkipTransformer2D as SkipTransformer2D,
)
from hasten._adapters.tokens import (
    AttentionTokens as AttentionTokens,
    JointTokens as JointTokens,
    TokenGrid as TokenGrid,
    UNetTokens as UNetTokens,
)
from hasten._adapters.units import (
    BlockUnit as BlockUnit,
    Cut as Cut,
    Grain as Grain,
    PrunableUnits as PrunableUnits,
    Structure as Structure,
    UnitGroup as UnitGroup,
)
from hasten._attention import (
    AttentionCall as AttentionCall,
    Proceed as Proceed,
    attention_layers as attention_layers,
    check_layers as check_layers,
    refuse_compiled as refuse_compiled,
)
from hasten._claims import Access as Access, Claim as Claim
from hasten._clock import Step as Step, expected_batch as expected_batch
from hasten._control import ControlCall as ControlCall
from hasten._cost import (
    StepCost as StepCost,
    branches as branches,
    call_size as call_size,
    plain_forecast as plain_forecast,
    planned_steps as planned_steps,
    third_branch as third_branch,
)
from hasten._denoiser import (
    DenoiserCall as DenoiserCall,
    parameter_names as parameter_names,
)
from hasten._errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    ConflictError as ConflictError,
    HastenError as HastenError,
    NumericalError as NumericalError,
    PluginError as PluginError,
    RankError as RankError,
    UnsupportedError as UnsupportedError,
    suggestion as suggestion,
)
from hasten._hookspecs import hookimpl as hookimpl
from hasten._lazy import lazy_names as lazy_names
from hasten._journal import OwnedJournal as OwnedJournal
from hasten._models import (
    Captions as Captions,
    Model as Model,
    Split as Split,
    read_settings as read_settings,
)
from hasten._module_state import ModuleState as ModuleState
from hasten._module_tree import clone_tree as clone_tree
from hasten._pipeline import Pipeline as Pipeline, Scheduler as Scheduler
from hasten._plan import Plan as Plan
from hasten._ranks import Ranks as Ranks, gather as gather
from hasten._recorder import Stopwatch as Stopwatch
from hasten._report import Report as Report, StepRecord as StepRecord
from hasten._run import Run as Run, RunCall as RunCall
from hasten._segments import (
    Segment as Segment,
    Sums as Sums,
    attend_segment as attend_segment,
    attend_with_lse as attend_with_lse,
)
from hasten._seams import Seams as Seams, submodule as submodule
from hasten._step_caches import step_caches as step_caches
from hasten._subclass import stock_class as stock_class
from hasten._swap import kept as kept, swapped as swapped
from hasten._target import Target as Target
from hasten._technique import (
    Finding as Finding,
    Forecast as Forecast,
    Sameness as Sameness,
    StepForecast as StepForecast,
    Technique as Technique,
    TechniqueConfig as TechniqueConfig,
)
from hasten._timesteps import (
    by_step as by_step,
    dynamic_shift as dynamic_shift,
    levels_of as levels_of,
    nothing_to_run as nothing_to_run,
    planned_levels as planned_levels,
)
from hasten.schedules.noise import NoiseLevel as NoiseLevel
from hasten._tunable import (
    Between as Between,
    Choices as Choices,
    Tunable as Tunable,
    dial_of as dial_of,
    tunable_options as tunable_options,
)
from hasten._compat import (
    CUDNN as CUDNN,
    EFFICIENT as EFFICIENT,
    FLASH as FLASH,
    FLASH_CPU as FLASH_CPU,
    HOOK_REGISTRY as HOOK_REGISTRY,
    MODULE_HOOKS as MODULE_HOOKS,
    MODULE_STORES as MODULE_STORES,
    TorchDispatchMode as TorchDispatchMode,
    aten as aten,
    unwrapped as unwrapped,
    execution_device as execution_device,
    hooks_on as hooks_on,
    keeps_state as keeps_state,
    offload_hook as offload_hook,
    saved_in as saved_in,
)
