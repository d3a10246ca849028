from hasten.extend import KVCache as KVCache
from hasten.pipelines.var.cache import DenseKVCache as DenseKVCache
from hasten.pipelines.var.pipeline import VARPipeline as VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler as NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer as NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel as MultiScaleVQModel
