package rights

import (
	"bytes"
	"fmt"
	"slices"
)

// Range is the names in [Start, End), or Start alone. A nil End is open.
type Range struct {
	Start, End []byte
	// One is set for the range of one name, which then needs no End.
	One bool
}

// Single returns the range of one name.
func Single(name []byte) Range { return Range{Start: name, One: true} }

// From returns the range of all names from one on.
func From(name []byte) Range { return Range{Start: name} }

const allNames = "(all)"

// String returns the range for a message, in the form in which a request most likely named it.
func (r Range) String() string {
	switch {
	case r.single():
		return fmt.Sprintf("%q", r.Start)
	case len(first(r.Start)) == 1 && first(r.Start)[0] == 0 && r.End == nil:
		return allNames
	case r.prefix():
		return fmt.Sprintf("with the prefix %q", r.Start)
	case r.End != nil:
		return fmt.Sprintf("from %q to %q", r.Start, r.End)
	}
	return fmt.Sprintf("from %q on", r.Start)
}

// single reports whether the range has one name.
func (r Range) single() bool {
	n := len(r.Start)
	return r.One || len(r.End) == n+1 && r.End[n] == 0 && bytes.HasPrefix(r.End, r.Start)
}

// prefix reports whether the range is the names that begin with Start.
func (r Range) prefix() bool {
	n := len(r.End) - 1
	return n >= 0 && n < len(r.Start) && bytes.Equal(r.Start[:n], r.End[:n]) && r.Start[n]+1 == r.End[n] &&
		len(bytes.TrimRight(r.Start[n+1:], "\xff")) == 0
}

// empty reports whether no name is in the range.
func (r Range) empty() bool { return !r.One && r.End != nil && bytes.Compare(r.Start, r.End) >= 0 }

// bounds returns the range with an end.
func (r Range) bounds() Range {
	if r.One {
		return Range{Start: r.Start, End: append(bytes.Clone(r.Start), 0)}
	}
	return Range{Start: first(r.Start), End: r.End}
}

// Need is one thing that a request does: access to a range of names or, if Capability is
// set, that. The zero value needs only somebody whom the tables know.
type Need struct {
	Access     Access
	Space      Space
	Range      Range
	Capability Capability
}

// String returns the need for a message, for example: write key "a", or read keys with the
// prefix "a/".
func (n Need) String() string {
	if n.Capability != "" {
		return fmt.Sprintf("use the capability %q", n.Capability)
	}
	if n.Access == 0 {
		return "do that"
	}
	verb := n.Access.String()
	if n.Access == ReadWrite {
		verb = "read and write"
	}
	switch text := n.Range.String(); {
	case n.Range.single():
		return fmt.Sprintf("%s %s %s", verb, n.Space, text)
	case text == allNames:
		return fmt.Sprintf("%s all %ss", verb, n.Space)
	default:
		return fmt.Sprintf("%s %ss %s", verb, n.Space, text)
	}
}

// Grants is what somebody may do. The zero value may do nothing. It is immutable.
type Grants struct {
	all          bool
	known        bool          // it is about somebody, who may have no rights yet
	ranges       [2][2][]Range // by space and by access (read, write): sorted, apart
	capabilities []Capability
}

// Allow reports whether the need is granted. A range is granted if the union of the
// permissions covers it; a range without names is always granted.
func (g *Grants) Allow(n Need) bool {
	if g.all {
		return true
	}
	if n.Capability != "" {
		return slices.Contains(g.capabilities, n.Capability)
	}
	for i, access := range []Access{Read, Write} {
		if n.Access&access != 0 && !covered(g.ranges[n.Space][i], n.Range) {
			return false
		}
	}
	return n.Access != 0 || g.known
}

// All reports whether everything is granted.
func (g *Grants) All() bool { return g.all }

// covered reports whether one of the ranges contains r. They neither overlap nor touch, so
// what two of them cover together leaves a gap.
func covered(ranges []Range, r Range) bool {
	if r.empty() {
		return true
	}
	i, exact := slices.BinarySearchFunc(ranges, first(r.Start), func(have Range, start []byte) int { return bytes.Compare(have.Start, start) })
	if !exact {
		i--
	}
	switch {
	case i < 0:
		return false
	case ranges[i].End == nil:
		return true
	case r.One:
		return bytes.Compare(r.Start, ranges[i].End) < 0
	}
	return r.End != nil && bytes.Compare(r.End, ranges[i].End) <= 0
}

// first returns a start of the same range that is not empty: no name is.
func first(start []byte) []byte {
	if len(start) == 0 {
		return []byte{0}
	}
	return start
}

// grantsOf returns the union of the roles.
func grantsOf(roles []*Role) *Grants {
	g := &Grants{known: true}
	for _, r := range roles {
		g.capabilities = append(g.capabilities, r.Capabilities...)
		for _, p := range r.Permissions {
			for i, access := range []Access{Read, Write} {
				if p.Access&access != 0 {
					g.ranges[p.Space][i] = append(g.ranges[p.Space][i], p.Range().bounds())
				}
			}
		}
	}
	slices.Sort(g.capabilities)
	g.capabilities = slices.Compact(g.capabilities)
	for space := range g.ranges {
		for access, ranges := range g.ranges[space] {
			g.ranges[space][access] = merge(ranges)
		}
	}
	return g
}

// merge sorts ranges with bounds, and makes one of those that overlap or touch.
func merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return bytes.Compare(a.Start, b.Start) })
	var out []Range
	for _, r := range ranges {
		if r.empty() {
			continue
		}
		if n := len(out); n > 0 && (out[n-1].End == nil || bytes.Compare(r.Start, out[n-1].End) <= 0) {
			if end := out[n-1].End; end != nil && (r.End == nil || bytes.Compare(r.End, end) > 0) {
				out[n-1].End = r.End
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// Permissions returns the granted permissions in order, merged into as few as possible.
// All rights are one permission in each space.
func (g *Grants) Permissions() (out []Permission) {
	if g.all {
		for _, space := range []Space{Keys, Locks} {
			out = append(out, Permission{Access: ReadWrite, Space: space, Key: []byte{0}, RangeEnd: []byte{0}})
		}
		return out
	}
	for space := range g.ranges {
		reads, writes := g.ranges[space][0], g.ranges[space][1]
		for _, r := range reads {
			access := Read
			if among(writes, r) {
				access = ReadWrite
			}
			out = append(out, r.permission(access, Space(space)))
		}
		for _, r := range writes {
			if !among(reads, r) {
				out = append(out, r.permission(Write, Space(space)))
			}
		}
	}
	return out
}

// Capabilities returns those that are granted, in order.
func (g *Grants) Capabilities() []Capability {
	if g.all {
		return slices.Sorted(slices.Values(Capabilities))
	}
	return slices.Clone(g.capabilities)
}

// among reports whether one of the ranges, sorted and apart, is exactly r.
func among(ranges []Range, r Range) bool {
	i, found := slices.BinarySearchFunc(ranges, r.Start, func(have Range, start []byte) int { return bytes.Compare(have.Start, start) })
	return found && (ranges[i].End == nil) == (r.End == nil) && bytes.Equal(ranges[i].End, r.End)
}

// permission returns the permission for a range with bounds.
func (r Range) permission(access Access, space Space) Permission {
	p := Permission{Access: access, Space: space, Key: r.Start, RangeEnd: r.End}
	switch {
	case r.End == nil:
		p.RangeEnd = []byte{0}
	case r.single():
		p.RangeEnd = nil
	}
	return p
}
