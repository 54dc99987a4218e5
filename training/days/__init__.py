"""The study of other days: accuracy by seconds of labels and days apart, next to other decoders."""
