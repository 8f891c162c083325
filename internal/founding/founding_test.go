package founding

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/proof"
)

// modelDir is a data directory whose writes survive a crash, unless it forgets.
type modelDir struct {
	s       *foundingSim
	member  uint64
	nonce   string
	seed    string           // what it was restored with
	kept    datadir.Founding // what the process sees
	durable datadir.Founding
	adopted *datadir.Charter
}

func (d *modelDir) Nonce() string              { return d.nonce }
func (d *modelDir) Founding() datadir.Founding { return d.kept }

func (d *modelDir) Seed() string {
	if d.s.seedless {
		return ""
	}
	return d.seed
}

func (d *modelDir) KeepFounding(_, _ uint64, _ string, f datadir.Founding) error {
	d.kept = f
	if !d.s.forgets {
		d.durable = f
	}
	return nil
}

func (d *modelDir) Adopt(_, _ uint64, _ string, c *datadir.Charter) error {
	d.s.observeAdoption(d, c)
	d.adopted = c
	return nil
}

// foundingSim runs the acceptors and founders of one list of initial members,
// with messages that are lost or interleaved, crashes, and wiped disks. A seed
// determines all of it.
type foundingSim struct {
	rng       *rand.Rand
	dirs      []*modelDir // member - 1
	acceptors []*Acceptor
	founders  []*Founder
	nested    int
	wiped     int
	drawn     uint64
	seeds     []string // what the members' directories are restored with

	// Planted bugs.
	forgets  bool // promises and acceptances do not survive a crash (F1)
	nameless bool // all directories of a member have the same nonce
	seedless bool // nobody compares what directories were restored with (F2)

	charters  map[uint64]*datadir.Charter
	voters    map[string]*modelDir // by cluster and member
	violation error
}

func newFoundingSim(seed uint64, members int) *foundingSim {
	s := &foundingSim{
		rng:      rand.New(rand.NewPCG(seed, 7)),
		charters: make(map[uint64]*datadir.Charter),
		voters:   make(map[string]*modelDir),
		seeds:    []string{""},
	}
	if seed%3 == 0 { // most are restored, from one backup
		s.seeds = []string{"a", "a", []string{"", "a", "b"}[s.rng.IntN(3)], "a", "a"}[:members]
		s.rng.Shuffle(members, func(i, j int) { s.seeds[i], s.seeds[j] = s.seeds[j], s.seeds[i] })
	}
	s.dirs = make([]*modelDir, members)
	s.acceptors = make([]*Acceptor, members)
	s.founders = make([]*Founder, members)
	for i := range s.dirs {
		s.wipe(i)
	}
	return s
}

func (s *foundingSim) wipe(i int) {
	s.wiped++
	s.dirs[i] = &modelDir{s: s, member: uint64(i + 1), nonce: fmt.Sprintf("dir%d-%d", i+1, s.wiped), seed: s.seeds[i%len(s.seeds)]}
	if s.nameless {
		s.dirs[i].nonce = fmt.Sprintf("dir%d", i+1)
	}
	s.boot(i)
}

// boot starts a process on the directory, after a crash for example.
func (s *foundingSim) boot(i int) {
	d := s.dirs[i]
	d.kept = d.durable
	s.acceptors[i] = NewAcceptor(d.member, 7, "", d)
	if d.adopted != nil {
		s.acceptors[i].Close() // it has its place
	}
	f := NewFounder(s.acceptors[i], nil, d.Seed(), s.ask)
	f.patience, f.draw = 0, func() uint64 { s.drawn++; return s.drawn }
	for m := range s.dirs {
		f.initial = append(f.initial, datadir.Founder{ID: uint64(m + 1)})
	}
	s.founders[i] = f
}

// ask delivers a request, or loses it or its answer. Between two deliveries
// another founder may get on.
func (s *foundingSim) ask(_ context.Context, members []uint64, r Request) map[uint64]Answer {
	out := make(map[uint64]Answer)
	for _, id := range members {
		if s.nested < 2 && s.rng.IntN(4) == 0 {
			s.nested++
			s.turn(s.rng.IntN(len(s.dirs)))
			s.nested--
		}
		if s.rng.IntN(5) == 0 {
			continue
		}
		a, err := s.acceptors[id-1].Handle(r)
		if err == nil && s.rng.IntN(5) != 0 {
			out[id] = a
		}
	}
	return out
}

// Turn lets a member do what a joiner does in one round.
func (s *foundingSim) turn(i int) {
	a := s.acceptors[i]
	if a.Chosen() != nil || s.dirs[i].adopted != nil {
		return
	}
	var others []uint64
	for k, d := range s.dirs {
		switch c := d.adopted; {
		case k == i || s.rng.IntN(4) == 0:
		case c == nil:
			others = append(others, d.member)
		case a.Names(c):
			_, err := a.Handle(Request{Rendezvous: 7, Seed: s.dirs[i].Seed(), Step: Adopt, Charter: c})
			s.violate(err)
			return
		default:
			return // it asks to be admitted
		}
	}
	if len(others)+1 >= s.founders[i].quorum() {
		s.violate(s.founders[i].Attempt(context.Background(), others))
	}
}

func (s *foundingSim) violate(err error) { s.violation = errors.Join(s.violation, err) }

func (s *foundingSim) observeAdoption(d *modelDir, c *datadir.Charter) {
	if d.adopted != nil && d.adopted.ClusterID != c.ClusterID {
		s.violate(fmt.Errorf("F2: %s adopts %d after %d", d.nonce, c.ClusterID, d.adopted.ClusterID))
	}
	if c.Seed != d.seed {
		s.violate(fmt.Errorf("F2: %s has the state %q and adopts a charter that begins with %q", d.nonce, d.seed, c.Seed))
	}
	if before := s.charters[c.ClusterID]; before != nil && !reflect.DeepEqual(before, c) {
		s.violate(fmt.Errorf("F3: cluster %d has two charters", c.ClusterID))
	}
	s.charters[c.ClusterID] = c
	if s.wiped == len(s.dirs) && len(s.charters) > 1 {
		s.violate(fmt.Errorf("F4: no disk was lost, and %d clusters were founded", len(s.charters)))
	}
	voter := fmt.Sprint(c.ClusterID, "/", d.member)
	if other := s.voters[voter]; other != nil && other != d {
		s.violate(fmt.Errorf("two directories vote as member %d of cluster %d", d.member, c.ClusterID))
	}
	s.voters[voter] = d
}

// run plays one seed and returns what went wrong.
func (s *foundingSim) run(wipes bool) error {
	for range 60 {
		i := s.rng.IntN(len(s.dirs))
		switch what := s.rng.IntN(10); {
		case what == 0:
			s.boot(i)
		case what == 1 && wipes:
			s.wipe(i)
		default:
			s.turn(i)
		}
	}
	return s.violation
}

const foundingSeeds = 3000

// Whatever is lost, crashes or interleaves: while no disk is lost, one cluster is
// founded (F1 to F4). If disks are lost, several may be, but under one id each
// member's vote belongs to one directory.
func TestFoundingSimulated(t *testing.T) {
	for _, wipes := range []bool{false, true} {
		founded, several := 0, 0
		for seed := range uint64(foundingSeeds) {
			s := newFoundingSim(seed, 3+2*int(seed%2))
			if err := s.run(wipes); err != nil {
				t.Fatalf("wipes %v, seed %d: %v", wipes, seed, err)
			}
			founded += min(1, len(s.charters))
			several += max(0, len(s.charters)-1)
		}
		if founded < foundingSeeds*9/10 || wipes && several == 0 {
			t.Errorf("wipes %v: in %d of %d seeds a cluster was founded, %d times another one", wipes, founded, foundingSeeds, several)
		}
	}
}

// The checks of the simulation are worth something: planted bugs go red.
func TestFoundingSimulationFindsPlantedBugs(t *testing.T) {
	for _, c := range []struct {
		name  string
		wipes bool
		plant func(*foundingSim)
	}{
		{"promises are not durable", false, func(s *foundingSim) { s.forgets = true }},
		{"charters do not tell directories apart", true, func(s *foundingSim) { s.nameless = true }},
		{"nobody compares seeds", false, func(s *foundingSim) { s.seedless = true }},
	} {
		var found error
		begin, seed := time.Now(), uint64(0)
		for ; seed < foundingSeeds && found == nil; seed++ {
			s := newFoundingSim(seed, 3)
			c.plant(s)
			for i := range s.dirs {
				s.wiped-- // these replace the first directories; no disk is lost
				s.wipe(i)
			}
			found = s.run(c.wipes)
		}
		if found == nil {
			t.Errorf("%s: not noticed", c.name)
			continue
		}
		proof.Caught(t, "controls of the founding", "founding: "+c.name, int(seed), begin)
	}
}
