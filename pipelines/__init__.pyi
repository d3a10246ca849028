from hasten.pipelines.infinity.pipeline import InfinityPipeline as InfinityPipeline
from hasten.pipelines.var.pipeline import VARPipeline as VARPipeline
