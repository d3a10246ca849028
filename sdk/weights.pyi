from hasten._pretrained import load_checked as load_checked
from hasten._weights import (
    REMEDY as REMEDY,
    built as built,
    check_fit as check_fit,
    checksum as checksum,
    fingerprint as fingerprint,
    put as put,
    read_sealed_tensors as read_sealed_tensors,
    read_tensors as read_tensors,
    read_weights as read_weights,
    require as require,
    save_sealed_tensors as save_sealed_tensors,
)
