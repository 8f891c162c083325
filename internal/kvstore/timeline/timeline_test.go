package timeline

import "testing"

func TestThinning(t *testing.T) {
	var tl Timeline
	tl.Reset(nil)
	dropped := 0
	const ticks = 3 * MaxSamples
	for i := range uint64(ticks) {
		added, thinned := tl.Add(Sample{Revision: i + 1, Millis: int64(10 * i)})
		if !added {
			t.Fatalf("sample %d was not added", i)
		}
		dropped += len(thinned)
	}
	if added, _ := tl.Add(Sample{Revision: ticks, Millis: 1 << 40}); added {
		t.Error("a second sample of one revision moved it forward")
	}
	s := tl.Samples()
	if len(s) > MaxSamples || len(s) < MaxSamples/2 || len(s)+dropped != ticks {
		t.Errorf("%d samples, %d dropped, of %d", len(s), dropped, ticks)
	}
	if first, last := s[0], s[len(s)-1]; first.Revision != 1 || last.Revision != ticks {
		t.Errorf("samples of revisions %d to %d, want 1 to %d", first.Revision, last.Revision, ticks)
	}
	for i := 1; i < len(s); i++ {
		if gap := s[i].Revision - s[i-1].Revision; gap > 64 {
			t.Fatalf("no sample of the %d revisions before %d", gap-1, s[i].Revision)
		}
	}
}

func TestDropUntil(t *testing.T) {
	var tl Timeline
	tl.Reset([]Sample{{2, 10}, {5, 20}, {9, 30}})
	for millis, want := range map[int64]uint64{9: 0, 10: 2, 19: 2, 20: 5, 1000: 9} {
		if got := tl.ByAge(millis); got != want {
			t.Errorf("revision %d was current at %d, want %d", got, millis, want)
		}
	}
	if dropped := tl.DropUntil(8); len(dropped) != 1 || dropped[0].Revision != 2 {
		t.Errorf("dropped %v", dropped)
	}
	if got := tl.ByAge(25); got != 5 {
		t.Errorf("revision %d at 25, want 5", got)
	}
	if dropped := tl.DropUntil(1); len(dropped) != 0 {
		t.Errorf("dropped %v", dropped)
	}
}

// TestHashesAreBounded: the last ones are kept, at the indexes that all replicas choose.
func TestHashesAreBounded(t *testing.T) {
	var tl Timeline
	tl.Reset(nil)
	const last = (KeptHashes + 5) * HashStride
	for i := uint64(1); i <= last; i++ {
		tl.NoteHash(i, i)
	}
	hashes := tl.Hashes()
	if len(hashes) != KeptHashes || hashes[last] != last {
		t.Errorf("%d hashes, %d at the end", len(hashes), hashes[last])
	}
}
