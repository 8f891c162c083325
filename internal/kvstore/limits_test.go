package kvstore

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/limits"
)

// TestLargestCommand: no command is longer than the layers below expect.
func TestLargestCommand(t *testing.T) {
	text := strings.Repeat("t", limits.MaxOriginBytes)
	key := strings.Repeat("k", MaxIdempotencyKeyBytes)
	c := Command{
		Op: OpPut, Key: make([]byte, MaxKeyBytes), End: make([]byte, MaxKeyBytes), Value: make([]byte, limits.MaxValueBytes),
		Lease: math.MaxUint64, TTLMillis: math.MaxInt64, KeepLease: true,
		Origin:      Origin{RequestID: text, Client: text, Principal: text, AuthRevision: math.MaxUint64},
		Idempotency: &Idempotency{Key: key},
		Release:     slices.Repeat([]string{key}, limits.MaxReleases),
	}
	for range limits.MaxConditions {
		condition := Condition{Kind: IfMatch}
		for range limits.MaxTags {
			condition.Revisions = append(condition.Revisions, math.MaxUint64)
		}
		c.Conditions = append(c.Conditions, condition)
	}
	b := EncodeCommand(nil, &c)
	if len(b) > limits.MaxCommandBytes || len(b) < limits.MaxCommandBytes-100 {
		t.Errorf("the largest command has %d bytes, the limit is %d", len(b), limits.MaxCommandBytes)
	}
	if _, err := DecodeCommand(b); err != nil {
		t.Error(err)
	}
	c.Conditions = append(c.Conditions, c.Conditions[0])
	if _, err := DecodeCommand(EncodeCommand(nil, &c)); err == nil {
		t.Error("more conditions than the limit are decoded")
	}
}
