package kvstore

import (
	"math"
	"testing"

	"github.com/kvd-io/kvd/internal/limits"
)

// TestLargestCommand: no command is longer than the layers below expect.
func TestLargestCommand(t *testing.T) {
	c := Command{Op: OpPut, Key: make([]byte, MaxKeyBytes), End: make([]byte, MaxKeyBytes), Value: make([]byte, limits.MaxValueBytes)}
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
