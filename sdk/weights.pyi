from hasten._pretrained import load_checked as load_checked
from hasten._weights import (
    REMEDY as REMEDY,
    built as built,
    check_fit as check_fit,
    put as put,
    read_noted as read_noted,
    read_tensors as read_tensors,
    read_weights as read_weights,
    require as require,
)
