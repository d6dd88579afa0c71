"""Sums and products over pairs of units, without a copy of a unit's vector for every pair, which takes longer than all else in a step.

Pairs are the entries of a sparse matrix of units by units. On a CPU torch multiplies with such a matrix, and reckons a product of matrices at its
entries only, several times faster than by copies; elsewhere the copies are made.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SparsePattern:
    """Distinct pairs sorted by row and column, as compressed rows and as compressed columns.

    Attributes:
        entry: Which of the distinct pairs each pair of the list is that was given [num_pairs].
        row: Units of the distinct pairs [num_entries].
        column: [num_entries].
        row_start: Where each row begins among them, and the end [num_units + 1].
        by_column: Their positions when sorted by column [num_entries].
        column_start: Where each column begins among those [num_units + 1].
    """

    entry: Tensor
    row: Tensor
    column: Tensor
    row_start: Tensor
    by_column: Tensor
    column_start: Tensor

    def collect(self, values: Tensor) -> Tensor:
        """Sum of the values of equal pairs: [num_pairs] -> [num_entries]."""
        return values.new_zeros(len(self.row)).index_add(0, self.entry, values)


def pattern_of(row: Tensor, column: Tensor, num_units: int) -> SparsePattern:
    """The pattern of pairs in any order, of which some may be equal: [num_pairs] each."""
    # Torch's kernels read and write beyond their arrays where entries are unsorted or equal.
    place, entry = torch.unique(row * num_units + column, return_inverse=True)
    row, column = place // num_units, place % num_units
    starts = [nn.functional.pad(torch.bincount(units, minlength=num_units).cumsum(0), (1, 0)) for units in (row, column)]
    return SparsePattern(entry, row, column, starts[0], torch.argsort(column, stable=True), starts[1])


def pair_products(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Scalar products of the vectors of pairs: left and right [num_units, dim], positions [num_pairs] -> [num_pairs]."""
    if left.device.type != "cpu":
        return (left[row] * right[column]).sum(dim=1)
    pattern = pattern_of(row, column, len(left))
    return PairProducts.apply(left, right, pattern).index_select(0, pattern.entry)


class PairProducts(torch.autograd.Function):
    """x_i . y_j for the distinct pairs ij of a pattern."""

    @staticmethod
    def forward(context: Any, left: Tensor, right: Tensor, pattern: SparsePattern) -> Tensor:
        """Vectors x and y [num_units, dim] -> [num_entries]."""
        context.save_for_backward(left, right)
        context.pattern = pattern
        return sampled_products(pattern, left, right)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the vectors: sum_j g_ij y_j and sum_i g_ij x_i."""
        (left, right), pattern = context.saved_tensors, context.pattern
        return sum_of_columns(pattern, gradients[0], right), sum_of_rows(pattern, gradients[0], left), None


class WeightedSums(torch.autograd.Function):
    """sum_j w_ij x_j for every unit i, over the distinct pairs ij of a pattern."""

    @staticmethod
    def forward(context: Any, weight: Tensor, vectors: Tensor, pattern: SparsePattern) -> Tensor:
        """Weights w [num_entries] and vectors x [num_units, dim] -> [num_units, dim]."""
        context.save_for_backward(weight, vectors)
        context.pattern = pattern
        return sum_of_columns(pattern, weight, vectors)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the weights, g_i . x_j, and of the vectors, sum_i w_ij g_i."""
        (weight, vectors), pattern = context.saved_tensors, context.pattern
        return sampled_products(pattern, gradients[0], vectors), sum_of_rows(pattern, weight, gradients[0]), None


def sum_of_columns(pattern: SparsePattern, values: Tensor, vectors: Tensor) -> Tensor:
    """sum_j v_ij x_j for every row i: values of the entries [num_entries], vectors [num_units, dim] -> [num_units, dim]."""
    return compressed(pattern.row_start, pattern.column, values) @ vectors


def sum_of_rows(pattern: SparsePattern, values: Tensor, vectors: Tensor) -> Tensor:
    """sum_i v_ij x_i for every column j, likewise."""
    return compressed(pattern.column_start, pattern.row[pattern.by_column], values[pattern.by_column]) @ vectors


def sampled_products(pattern: SparsePattern, left: Tensor, right: Tensor) -> Tensor:
    """x_i . y_j at the entries: vectors [num_units, dim] each -> [num_entries]."""
    empty = compressed(pattern.row_start, pattern.column, left.new_zeros(len(pattern.row)))
    return torch.sparse.sampled_addmm(empty, left.contiguous(), right.contiguous().T, beta=0.0).values()


def compressed(start: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """A square sparse matrix in compressed rows."""
    num_units = len(start) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(start, column, values, (num_units, num_units), check_invariants=False)
