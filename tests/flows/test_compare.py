import numpy as np
import pytest
import torch

from imagery2flow.flows.compare import BASELINES, compare
from imagery2flow.flows.splits import draw_split
from imagery2flow.run.flow_config import EvaluateConfig

from .test_evaluation import make_town
