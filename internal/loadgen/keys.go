package loadgen

import (
	"math/rand/v2"
	"strconv"
)

// Keys chooses keys of a key space, at random or in sequence. One goroutine
// owns it.
type Keys struct {
	space  uint64
	random *rand.Rand // nil if in sequence
	next   uint64
	step   uint64
	buf    []byte
}

// RandomKeys chooses uniformly at random; the same seed gives the same keys.
func RandomKeys(space, seed uint64) *Keys {
	return &Keys{space: space, random: rand.New(rand.NewPCG(seed, space))}
}

// SequentialKeys goes through the key space in a loop, in strides of step from
// first on. Several with the same step and different firsts share the space
// without overlap.
func SequentialKeys(space, first, step uint64) *Keys {
	return &Keys{space: space, next: first, step: step}
}

// Next returns a key; it is valid until the next call.
func (k *Keys) Next() []byte {
	n := k.next
	if k.random != nil {
		n = k.random.Uint64N(k.space)
	} else {
		k.next += k.step
	}
	k.buf = AppendKey(k.buf[:0], n%k.space)
	return k.buf
}

// AppendKey appends the key of a number, for example "key-00000042". The first
// hundred million keys have the same length.
func AppendKey(dst []byte, n uint64) []byte {
	dst = append(dst, "key-"...)
	for limit := uint64(10_000_000); limit > 1 && n < limit; limit /= 10 {
		dst = append(dst, '0')
	}
	return strconv.AppendUint(dst, n, 10)
}
