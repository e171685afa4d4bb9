"""What a step must move between the device's memory and its processors."""

SECTOR = 32
"""Bytes that are read and written as a whole."""


def bytes_per_entry(parameter: int, moments: int, update_fraction: float, master: bool = False) -> float:
    """Bytes for each entry, given the sizes of a parameter (and its gradient) and of a moment.

    The gradient and both moments are read, both moments written. A parameter is read and written with its whole
    sector, if any entry of that moves: 8 of f32, 16 of 16 bits. If there is a master copy, its sectors are, and the
    parameter is written only. With an update fraction of 1 that is AdamW.
    """

    def share_of_sectors(size: int) -> float:
        return float(1 - (1 - update_fraction) ** (SECTOR / size))

    always = parameter + 4 * moments
    if master:
        return always + parameter + 4 + 4 * share_of_sectors(4)
    return always + 2 * parameter * share_of_sectors(parameter)
