package engine

import (
	"encoding/binary"
	"fmt"
	"testing"
)

const benchmarkKeys = 100_000

// forEachEngine runs a benchmark on both engines, filled with benchmarkKeys
// keys.
func forEachEngine(b *testing.B, run func(b *testing.B, e Engine)) {
	engines := map[string]func() Engine{
		"memory": NewMemory,
		"pebble": func() Engine { return mustOpen(b, b.TempDir(), PebbleOptions{}) },
	}
	for name, open := range engines {
		b.Run(name, func(b *testing.B) {
			e := open()
			must(b, e.Replace(func(set func(key, value []byte) error) error {
				for i := range benchmarkKeys {
					if err := set(benchmarkKey(nil, i), make([]byte, 100)); err != nil {
						return err
					}
				}
				return nil
			}))
			b.ReportAllocs()
			b.ResetTimer()
			run(b, e)
			b.StopTimer()
			must(b, e.Close())
		})
	}
}

func benchmarkKey(dst []byte, i int) []byte {
	dst = append(dst[:0], "key/"...)
	return binary.BigEndian.AppendUint32(dst, uint32(i))
}

// scatter visits all keys in an order that is not theirs.
func scatter(i int) int { return i * 7919 % benchmarkKeys }

func BenchmarkGet(b *testing.B) {
	forEachEngine(b, func(b *testing.B, e Engine) {
		var key, value []byte
		for i := range b.N {
			var err error
			key = benchmarkKey(key, scatter(i))
			if value, err = e.Get(value[:0], key); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIter(b *testing.B) {
	forEachEngine(b, func(b *testing.B, e Engine) {
		var key []byte
		for i := range b.N {
			key = benchmarkKey(key, scatter(i))
			it, err := e.Iter(key, nil)
			must(b, err)
			if !it.First() {
				b.Fatal("no key")
			}
			must(b, it.Close())
		}
	})
}

func BenchmarkBatchCommit(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("%d writes", size), func(b *testing.B) {
			forEachEngine(b, func(b *testing.B, e Engine) {
				benchmarkCommit(b, e, size)
			})
		})
	}
}

func benchmarkCommit(b *testing.B, e Engine, size int) {
	batch := e.NewWriteBatch()
	var key []byte
	value := make([]byte, 100)
	for i := range b.N {
		for j := range size {
			key = benchmarkKey(key, scatter(i*size+j))
			batch.Set(key, value)
		}
		must(b, batch.Commit())
	}
	must(b, batch.Close())
}
