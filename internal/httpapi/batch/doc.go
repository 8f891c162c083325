// Package batch carries out streams of operations: POST /v1/batch. Stream has the
// algorithm and its invariants, reader the half of it that reads.
package batch
