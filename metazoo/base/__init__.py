"""What a plugin author subclasses: Algorithm, Backbone, Dataset; and the training options."""
