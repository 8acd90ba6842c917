"""Sources, stack, merge and variants side by side in one labelled grid."""
