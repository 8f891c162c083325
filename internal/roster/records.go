package roster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/kvd-io/kvd/internal/statemachine"
)

// The records in which the state machine stores the roster. A key is a letter
// and, except for that of the cluster, a member's id in big-endian order.
const (
	recordVersion = 1

	recordCluster = 'c'
	recordMade    = 'k'
	recordMember  = 'm'
	recordOrigin  = 'o'
	recordRemoved = 'r'
)

func recordKey(table byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{table}, id)
}

func memberRecord(m *Member) statemachine.Record {
	b, err := json.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("roster: encode member %d: %v", m.ID, err)) // plain data always encodes
	}
	return statemachine.Record{Key: recordKey(recordMember, m.ID), Value: append([]byte{recordVersion}, b...)}
}

func (r *Roster) originRecord(id uint64) statemachine.Record {
	o := r.origins[id]
	b := []byte{recordVersion}
	b = binary.AppendUvarint(b, o.Incarnation)
	b = binary.AppendUvarint(b, o.LastBatch)
	b = binary.AppendUvarint(b, o.LastChange)
	b = binary.AppendUvarint(b, o.Starts)
	return statemachine.Record{Key: recordKey(recordOrigin, id), Value: append(b, o.Boot...)}
}

func (r *Roster) clusterRecord() statemachine.Record {
	b := binary.BigEndian.AppendUint64([]byte{recordVersion}, r.clusterID)
	return statemachine.Record{Key: []byte{recordCluster}, Value: b}
}

// madeRecord returns the record of one of the changes that are remembered. Its key has
// the number of the change in place of an id.
func (r *Roster) madeRecord(i int) statemachine.Record {
	b, err := json.Marshal(r.made[i])
	if err != nil {
		panic(fmt.Sprintf("roster: encode a change: %v", err)) // plain data always encodes
	}
	return statemachine.Record{Key: recordKey(recordMade, r.madeFrom+uint64(i)), Value: append([]byte{recordVersion}, b...)}
}

// Records returns the whole roster in its stored form, sorted within each table.
func (r *Roster) Records() []statemachine.Record {
	out := []statemachine.Record{r.clusterRecord()}
	for i := range r.made {
		out = append(out, r.madeRecord(i))
	}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		out = append(out, memberRecord(r.members[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(r.origins)) {
		out = append(out, r.originRecord(id))
	}
	for _, id := range slices.Sorted(maps.Keys(r.removed)) {
		out = append(out, statemachine.Record{Key: recordKey(recordRemoved, id), Value: []byte{recordVersion}})
	}
	return out
}

// RecordsFor returns the changes that turn the records of this roster into those
// of next.
func (r *Roster) RecordsFor(next *Roster) []statemachine.Record {
	out := next.Records()
	stays := make(map[string]bool)
	for _, rec := range out {
		stays[string(rec.Key)] = true
	}
	for _, rec := range r.Records() {
		if !stays[string(rec.Key)] {
			out = append(out, statemachine.Record{Key: rec.Key})
		}
	}
	return out
}

// Load rebuilds a roster from its records.
func Load(records []statemachine.Record) (*Roster, error) {
	r := New(0, nil)
	for _, rec := range records {
		if err := r.load(rec); err != nil {
			return nil, fmt.Errorf("membership record %x: %w", rec.Key, err)
		}
	}
	for id := range r.removed {
		r.highestID = max(r.highestID, id)
	}
	return r, nil
}

func (r *Roster) load(rec statemachine.Record) error {
	if len(rec.Key) == 0 || len(rec.Value) == 0 || rec.Value[0] != recordVersion {
		return fmt.Errorf("%w: the key is missing, or the record version unknown", errMalformed)
	}
	value := rec.Value[1:]
	if string(rec.Key) == string(recordCluster) && len(value) == 8 {
		r.clusterID = binary.BigEndian.Uint64(value)
		return nil
	}
	if len(rec.Key) != 9 {
		return errMalformed
	}
	id := binary.BigEndian.Uint64(rec.Key[1:])
	switch rec.Key[0] {
	case recordMember:
		m := new(Member)
		if err := json.Unmarshal(value, m); err != nil || m.ID != id {
			return errors.Join(errMalformed, err)
		}
		r.members[id] = m
		r.highestID = max(r.highestID, id)
	case recordMade:
		return r.loadMade(id, value)
	case recordOrigin:
		return r.loadOrigin(id, value)
	case recordRemoved:
		r.removed[id] = true
	default:
		return errMalformed
	}
	return nil
}

// loadMade loads a change by its number. The records come in the order of their keys.
func (r *Roster) loadMade(number uint64, b []byte) error {
	var made Made
	if err := json.Unmarshal(b, &made); err != nil || made.Key == "" {
		return errors.Join(errMalformed, err)
	}
	if len(r.made) == 0 {
		r.madeFrom = number
	}
	if number != r.madeFrom+uint64(len(r.made)) || len(r.made) == maxMade {
		return errMalformed
	}
	r.made = append(r.made, made)
	return nil
}

func (r *Roster) loadOrigin(id uint64, b []byte) (err error) {
	o := new(Origin)
	for _, field := range []*uint64{&o.Incarnation, &o.LastBatch, &o.LastChange, &o.Starts} {
		if *field, b, err = takeUvarint(b); err != nil {
			return err
		}
	}
	o.Boot = string(b)
	r.origins[id] = o
	return nil
}
