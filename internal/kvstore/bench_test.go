package kvstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

const (
	benchValueBytes = 128
	benchBatch      = 64 // commands of an Apply
)

// benchPuts encodes puts of n keys in an order without locality.
func benchPuts(keys int) [][]byte {
	out := make([][]byte, keys)
	value := make([]byte, benchValueBytes)
	for i := range out {
		binary.LittleEndian.PutUint64(value, uint64(i))
		c := Command{Op: OpPut, Key: benchKey(i * 7919 % keys), Value: value}
		out[i] = EncodeCommand(nil, &c)
	}
	return out
}

func benchKey(i int) []byte { return fmt.Appendf(nil, "bench/key-%08d", i) }

// benchStore opens a store, on real files if the engine has any.
func benchStore(b *testing.B, name string, o Options) *Store {
	b.Helper()
	e := engine.NewMemory()
	if name == "pebble" {
		var err error
		e, err = engine.OpenPebble(b.TempDir(), engine.PebbleOptions{Comparer: layout.Comparer()})
		must(b, err)
	}
	s := openStore(b, e, o)
	b.Cleanup(func() { must(b, s.Close()) })
	return s
}

// applyAll applies commands in batches, one entry each.
func applyAll(b *testing.B, s *Store, commands [][]byte) {
	b.Helper()
	for len(commands) > 0 {
		n := min(benchBatch, len(commands))
		must(b, s.Apply([]Entry{{Index: s.Position().Index + 1, Term: 1, Commands: commands[:n], WantResults: true}}))
		commands = commands[n:]
	}
}

// BenchmarkApplyPut puts existing keys, in entries of 64 commands: with all
// metadata in the cache; with ten times as many keys as the cache holds; and
// each one for the first time since the start.
func BenchmarkApplyPut(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		b.Run(name+"/warm", func(b *testing.B) { benchApplyPut(b, name, 10_000, Options{CacheEntries: 64 << 10}) })
		b.Run(name+"/tenfold", func(b *testing.B) { benchApplyPut(b, name, 100_000, Options{CacheEntries: 5_000}) })
		b.Run(name+"/cold", func(b *testing.B) { benchApplyPut(b, name, 100_000, Options{CacheEntries: 1}) })
	}
}

func benchApplyPut(b *testing.B, name string, keys int, o Options) {
	s := benchStore(b, name, o)
	commands := benchPuts(keys)
	applyAll(b, s, commands)
	b.ReportAllocs()
	for done := 0; b.Loop(); done++ {
		// One iteration is a put; they are applied when a batch is full.
		if done%benchBatch == benchBatch-1 {
			from := done / benchBatch * benchBatch % (keys - benchBatch)
			applyAll(b, s, commands[from:from+benchBatch])
		}
	}
}

// BenchmarkApplyNew creates keys in a store of 200,000, in ascending or random
// order, in entries of several sizes. One operation is a key.
func BenchmarkApplyNew(b *testing.B) {
	for _, order := range []string{"ascending", "random"} {
		for _, size := range []int{1, 16, 200, 2000} {
			b.Run(fmt.Sprintf("%s/%d", order, size), func(b *testing.B) {
				s := benchStore(b, "pebble", Options{})
				load := newKeys{store: s, size: 2000, random: order == "random"}
				load.apply(b, 200_000)
				load.size = size
				b.ReportAllocs()
				b.ResetTimer()
				before := processCPU(b)
				load.apply(b, b.N)
				b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkApplyOverwrite writes versions of 100,000 keys in random order, in entries of
// 200. One operation is a version, with its share of flushes and compactions.
func BenchmarkApplyOverwrite(b *testing.B) {
	s := benchStore(b, "pebble", Options{})
	load := newKeys{store: s, size: 200, random: true, among: 100_000}
	load.apply(b, 200_000)
	b.ReportAllocs()
	b.ResetTimer()
	before := processCPU(b)
	load.apply(b, b.N)
	must(b, s.Flush())
	b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
}

// processCPU returns the CPU time of the process, which includes flushes, compactions
// and garbage collection.
func processCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// newKeys puts keys that do not exist yet, or those of a number of keys, if it is set.
type newKeys struct {
	store  *Store
	size   int // commands of an entry
	random bool
	among  uint64
	made   uint64
}

func (l *newKeys) apply(b *testing.B, n int) {
	var value [256]byte
	chance := rand.NewChaCha8([32]byte{})
	var buf []byte
	var commands [][]byte
	for n > 0 {
		buf, commands = buf[:0], commands[:0]
		for range min(l.size, n) {
			l.made++
			id := l.made
			if l.random {
				id *= 0x9E3779B97F4A7C15
			}
			if l.among > 0 {
				id %= l.among
			}
			_, _ = chance.Read(value[:len(value)/2]) // half of it does not compress
			c := Command{Op: OpPut, Key: fmt.Appendf(nil, "bench/key-%020d", id), Value: value[:]}
			from := len(buf)
			buf = EncodeCommand(buf, &c)
			commands = append(commands, buf[from:len(buf):len(buf)])
		}
		must(b, l.store.Apply([]Entry{{Index: l.store.Position().Index + 1, Term: 1, Commands: commands, WantResults: true}}))
		n -= len(commands)
	}
}

// BenchmarkDeleteRange deletes 100,000 keys that the cache does not know.
func BenchmarkDeleteRange(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		b.Run(name, func(b *testing.B) {
			s := benchStore(b, name, Options{CacheEntries: 1})
			command := [][]byte{EncodeCommand(nil, &Command{Op: OpDeleteRange, Key: []byte("bench/")})}
			for b.Loop() {
				b.StopTimer()
				applyAll(b, s, benchPuts(100_000))
				b.StartTimer()
				applyAll(b, s, command)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		b.Run(name, func(b *testing.B) {
			s := benchStore(b, name, Options{})
			applyAll(b, s, benchPuts(100_000))
			key := benchKey(0)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				key = fmt.Appendf(key[:0], "bench/key-%08d", i*7919%100_000)
				if _, _, err := s.Get(key, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkList lists 1,000 keys of three versions each.
func BenchmarkList(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		s := benchStore(b, name, Options{})
		for range 3 {
			applyAll(b, s, benchPuts(1000))
		}
		for _, reverse := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/reverse=%t", name, reverse), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					n := 0
					_, err := s.List(context.Background(), Range{Reverse: reverse}, func(i Item) (bool, error) {
						n += len(i.KV.Value)
						return true, nil
					})
					if must(b, err); n != 1000*benchValueBytes {
						b.Fatalf("%d bytes", n)
					}
				}
			})
		}
	}
}

// BenchmarkHistory reads a store of 100,000 keys with ten versions each, which is five
// times as large as the block cache: keys in random order, and lists of 1,000 keys.
func BenchmarkHistory(b *testing.B) {
	s := benchStore(b, "pebble", Options{})
	load := newKeys{store: s, size: 200, random: true, among: 100_000}
	load.apply(b, 1_000_000)
	must(b, s.Flush())
	b.Run("get", func(b *testing.B) {
		before := processCPU(b)
		for i := 0; b.Loop(); i++ {
			if _, _, err := s.Get(fmt.Appendf(nil, "bench/key-%020d", i*7919%100_000), 0); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
	})
	b.Run("list", func(b *testing.B) {
		before := processCPU(b)
		for i := 0; b.Loop(); i++ {
			n := 0
			from := fmt.Appendf(nil, "bench/key-%020d", i*7919%90_000)
			_, err := s.List(context.Background(), Range{Start: from}, func(Item) (bool, error) {
				n++
				return n < 1000, nil
			})
			if must(b, err); n != 1000 {
				b.Fatalf("%d keys", n)
			}
		}
		b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
	})
}

func BenchmarkBody(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		s := benchStore(b, name, Options{})
		applyAll(b, s, benchPuts(100_000))
		body := bodyOf(b, s)
		raw := s.Stats().LogicalBytes
		b.Run(name+"/write", func(b *testing.B) {
			b.SetBytes(raw)
			v := mustGet[*View](b)(s.View())
			defer v.Close()
			for b.Loop() {
				if _, err := v.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/restore", func(b *testing.B) {
			b.SetBytes(raw)
			to := benchStore(b, name, Options{})
			for b.Loop() {
				must(b, to.Restore(bytes.NewReader(body)))
			}
		})
	}
}
