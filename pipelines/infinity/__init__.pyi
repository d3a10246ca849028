from hasten.pipelines.infinity.bsq_model import BSQAutoencoder as BSQAutoencoder
from hasten.pipelines.infinity.pipeline import InfinityPipeline as InfinityPipeline
