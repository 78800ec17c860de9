"""Each augmentation in a file of its own. A file that is put here is known everywhere: recipe, help, preview."""
