"""Texts that several tasks share."""

SHORT = "Answer the question using a single word or phrase."
CAPTION = "Provide a one-sentence caption for the {modality}."
TUNED = (
    "Figures this high are otherwise reached by models tuned on the dataset's training captions; the paper does not "
    "say whether its model was, and does not publish the prompt."
)
