"""Fine-tuning of an encoder with a support set: SetFit for texts, P>M>F for images."""
