package raftnode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
)

// machineState is everything that the simulator's state machine replicates.
type machineState struct {
	Index, Term uint64
	IDs         []uint64 // of the commands that ran, in order
	Records     map[string][]byte
	Hash        uint64 // over all that ran, in order
}

func (m *machineState) clone() *machineState {
	c := *m
	c.IDs = slices.Clip(m.IDs)
	c.Records = maps.Clone(m.Records)
	return &c
}

// simMachine is the state machine of a simulated member, with what the simulator
// wants to know of it.
type simMachine interface {
	StateMachine
	crash() // forgets what was not durable
	position() (index, term uint64)
	hash() uint64       // of the whole state
	ran(id uint64) bool // whether the command with the number was executed
	verify(body io.Reader) error
	rot(rng *rand.Rand) bool // a stored block rots, if one is stored
	scrub() error            // reads all that is stored
	failed() error           // the damage that a read has met, or nil
	close()
}

// machineResult is the result of a command: the index of its entry, and what the
// machine has to say beside that.
type machineResult struct {
	index uint64
	value any
}

// machine is the simulator's StateMachine: a list of command ids. A command is
// its id in eight bytes, and padding.
type machine struct {
	cur     *machineState
	seen    map[uint64]bool
	durable *machineState // survives a crash; always nil for one in memory
	memory  bool

	// observe is called with each entry after it ran.
	observe func(e *Entry, hash uint64)
	// violation is called when a command ran twice.
	violation func(format string, args ...any)
	// stain, in one control, makes the machine depend on its node.
	stain func(id uint64) uint64
	// rotten is set while a block of what is stored has rotted, and met once it was read.
	// reads decides whether an access reads the block.
	rotten, met bool
	reads       func() bool
	// served, in one control, reads rotten blocks without noticing.
	served bool
}

func newMachine(memory bool) *machine {
	m := &machine{memory: memory, stain: func(uint64) uint64 { return 0 }}
	m.reset(&machineState{Records: map[string][]byte{}})
	return m
}

func newModelMachine(n *simNode) simMachine {
	s, id := n.s, n.id
	m := newMachine(s.opts.memory)
	m.violation = func(format string, args ...any) {
		s.violate("member %d: "+format, append([]any{id}, args...)...)
	}
	m.observe = func(e *Entry, hash uint64) { s.observeRun(n, e, hash) }
	m.reads = func() bool { return s.chance(0.002) }
	m.served = s.opts.bug == bugRotServed
	if s.opts.bug == bugNonDeterministicApply {
		m.stain = func(uint64) uint64 {
			if s.chance(0.001) {
				return id
			}
			return 0
		}
	}
	return m
}

// modelCommand makes a command for a machine.
func modelCommand(id uint64, size int) []byte {
	cmd := binary.BigEndian.AppendUint64(nil, id)
	return append(cmd, make([]byte, max(0, size-len(cmd)))...)
}

func (m *machine) position() (index, term uint64) { return m.cur.Index, m.cur.Term }
func (m *machine) hash() uint64                   { return m.cur.Hash }
func (m *machine) ran(id uint64) bool             { return m.seen[id] }

func (m *machine) verify(body io.Reader) error {
	_, err := verifyMachineBody(body)
	return err
}

func (m *machine) reset(s *machineState) {
	m.cur = s
	m.seen = make(map[uint64]bool, len(s.IDs))
	for _, id := range s.IDs {
		m.seen[id] = true
	}
}

func (m *machine) rot(*rand.Rand) bool {
	if m.durable != nil && m.served {
		m.cur.Hash++
	}
	m.rotten = m.durable != nil && !m.served
	return m.durable != nil
}

func (m *machine) scrub() error {
	if m.rotten {
		return errRotten
	}
	return nil
}

func (m *machine) failed() error {
	if m.met {
		return errRotten
	}
	return nil
}

// read is an access to what is stored. One to everything meets what has rotted.
func (m *machine) read(everything bool) error {
	if m == nil {
		return nil // a body without a machine
	}
	if m.rotten && (everything || m.reads()) {
		m.met = true
	}
	return m.failed()
}

func (m *machine) close() {}

// crash forgets what was not durable.
func (m *machine) crash() {
	m.met = false
	if m.durable == nil {
		m.reset(&machineState{Records: map[string][]byte{}})
		return
	}
	m.reset(m.durable.clone())
}

func (m *machine) Apply(entries []Entry) error {
	if err := m.read(false); err != nil {
		return err
	}
	for i := range entries {
		m.run(&entries[i])
	}
	return nil
}

func (m *machine) run(e *Entry) {
	m.cur.Index, m.cur.Term = e.Index, e.Term
	h := fnv.New64a()
	_ = binary.Write(h, binary.BigEndian, []uint64{m.cur.Hash, e.Index, e.Term})
	for _, c := range e.Commands {
		id := binary.BigEndian.Uint64(c)
		if m.seen[id] {
			m.violation("command %d ran twice, the second time in entry %d", id, e.Index)
		}
		m.seen[id] = true
		m.cur.IDs = append(m.cur.IDs, id)
		_ = binary.Write(h, binary.BigEndian, id^m.stain(id))
		if e.WantResults {
			e.Results = append(e.Results, machineResult{index: e.Index})
		}
	}
	for _, r := range e.Records {
		h.Write(r.Key)
		h.Write(r.Value)
		if r.Value == nil {
			delete(m.cur.Records, string(r.Key))
		} else {
			m.cur.Records[string(r.Key)] = r.Value
		}
	}
	m.cur.Hash = h.Sum64()
	m.observe(e, m.cur.Hash)
}

func (m *machine) View() (View, error) {
	if err := m.failed(); err != nil {
		return nil, err
	}
	return &machineView{m.cur.clone(), m}, nil
}

func (m *machine) Durable() (View, error) {
	if m.durable == nil {
		return nil, nil
	}
	return &machineView{m.durable.clone(), m}, nil
}

func (m *machine) Flush() error {
	if err := m.failed(); err != nil {
		return err
	}
	if !m.memory {
		m.durable = m.cur.clone()
	}
	return nil
}

// readMachineBody reads a body: JSON after its checksum.
func readMachineBody(r io.Reader) (*machineState, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if len(b) < crc32.Size || crc32.ChecksumIEEE(b[crc32.Size:]) != binary.BigEndian.Uint32(b) {
		return nil, errors.New("the body is damaged")
	}
	s := new(machineState)
	return s, json.Unmarshal(b[crc32.Size:], s)
}

func verifyMachineBody(r io.Reader) (BodyInfo, error) {
	s, err := readMachineBody(r)
	if err != nil {
		return BodyInfo{}, err
	}
	return BodyInfo{Index: s.Index, Term: s.Term}, nil
}

func (m *machine) Restore(r io.Reader) error {
	s, err := readMachineBody(r)
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	m.reset(s)
	m.rotten, m.met = false, false
	return m.Flush()
}

func (m *machine) Maintain() (bool, error) { return false, nil }

type machineView struct {
	s  *machineState
	of *machine
}

func (v *machineView) Position() (index, term uint64) { return v.s.Index, v.s.Term }

func (v *machineView) Records() ([]Record, error) {
	var out []Record
	for _, k := range slices.Sorted(maps.Keys(v.s.Records)) {
		out = append(out, Record{Key: []byte(k), Value: v.s.Records[k]})
	}
	return out, nil
}

func (v *machineView) WriteTo(w io.Writer) (int64, error) {
	if err := v.of.read(true); err != nil {
		return 0, err
	}
	b, err := json.Marshal(v.s)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(append(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)), b...))
	return int64(n), err
}

func (v *machineView) Close() error { return nil }
