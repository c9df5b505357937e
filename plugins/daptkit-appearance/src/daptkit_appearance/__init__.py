"""Images of the target given the source's appearance: levels, colour, low frequencies."""
