package param

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// maxTags bounds the entity tags of one condition, which become part of the log.
const maxTags = limits.MaxTags

// tagList is a parsed If-Match or If-None-Match: "*" or a list.
type tagList struct {
	any  bool
	tags []entityTag
}

// entityTag is one element of a list (RFC 9110, section 8.8.3).
type entityTag struct {
	weak   bool
	opaque string // without the quotes
}

// parseTags reads all lines of a header as one list. Empty elements are skipped, as
// RFC 9110, section 5.6.1.2 requires of a recipient.
func parseTags(name string, lines []string) (tagList, error) {
	var l tagList
	for _, line := range lines {
		if err := l.parseLine(line); err != nil {
			return tagList{}, badRequest("the header %s must be * or a list of entity tags (for example, \"7\", \"8\"): %v", name, err)
		}
	}
	if l.any && len(l.tags) > 0 {
		return tagList{}, badRequest("the header %s has both * and entity tags", name)
	}
	return l, nil
}

// tagError says what is wrong with a list of entity tags.
type tagError string

func (e tagError) Error() string { return string(e) }

func (l *tagList) parseLine(line string) error {
	for {
		line = strings.TrimLeft(line, " \t,")
		if line == "" {
			return nil
		}
		var err error
		if line, err = l.parseElement(line); err != nil {
			return err
		}
		line = strings.TrimLeft(line, " \t")
		if line != "" && line[0] != ',' {
			return tagError("missing comma between two elements")
		}
	}
}

// parseElement removes one element from the front of the line.
func (l *tagList) parseElement(line string) (rest string, err error) {
	if line[0] == '*' {
		if l.any {
			return "", tagError("* occurs twice")
		}
		l.any = true
		return line[1:], nil
	}
	var tag entityTag
	if tag.weak = strings.HasPrefix(line, "W/"); tag.weak {
		line = line[2:]
	}
	if line == "" || line[0] != '"' {
		return "", tagError("an entity tag must be in double quotes")
	}
	end := strings.IndexByte(line[1:], '"')
	if end < 0 {
		return "", tagError("missing closing double quote")
	}
	tag.opaque = line[1 : 1+end]
	if strings.ContainsFunc(tag.opaque, notTagChar) {
		return "", tagError("an entity tag must not contain spaces or control characters")
	}
	if len(l.tags) == maxTags {
		return "", tagError("more than " + strconv.Itoa(maxTags) + " entity tags")
	}
	l.tags = append(l.tags, tag)
	return line[end+2:], nil
}

// notTagChar reports whether the grammar excludes a character from tags. Bytes from
// 0x80 on are allowed, whatever rune they decode to.
func notTagChar(r rune) bool { return r <= ' ' || r == 0x7f }

// condition returns the list as a condition for the store. A tag that kvd cannot have
// made matches no key, and neither does a weak one in a strong comparison: both are
// left out, and an empty list never matches.
func (l *tagList) condition(kind kvstore.ConditionKind) kvstore.Condition {
	c := kvstore.Condition{Kind: kind, Any: l.any}
	for _, t := range l.tags {
		if t.weak && kind == kvstore.IfMatch {
			continue // the comparison is strong
		}
		if rev, ok := t.revision(); ok {
			c.Revisions = append(c.Revisions, rev)
		}
	}
	return c
}

// revision returns the revision that a tag was made from. Only the canonical decimal
// counts: tags are compared as bytes, so "07" is not "7".
func (t *entityTag) revision() (uint64, bool) {
	if t.opaque == "" || t.opaque[0] == '0' || t.opaque[0] == '+' {
		return 0, false
	}
	rev, err := strconv.ParseUint(t.opaque, 10, 64)
	return rev, err == nil
}

// HeaderConditions reads If-Match and If-None-Match.
func HeaderConditions(h http.Header) ([]kvstore.Condition, error) {
	var conds []kvstore.Condition
	for _, c := range [...]struct {
		name string
		kind kvstore.ConditionKind
	}{{"If-Match", kvstore.IfMatch}, {"If-None-Match", kvstore.IfNoneMatch}} {
		lines, ok := h[c.name]
		if !ok {
			continue
		}
		list, err := parseTags(c.name, lines)
		if err != nil {
			return nil, err
		}
		conds = append(conds, list.condition(c.kind))
	}
	return conds, nil
}

// RefuseConditions refuses the headers of conditions where there is no single key that
// they could be about.
func RefuseConditions(h http.Header, instead string) error {
	if len(h["If-Match"])+len(h["If-None-Match"]) > 0 {
		return badRequest("conditions apply to a single key; %s", instead)
	}
	return nil
}

// KeyConditions returns all conditions of a change to one key. Each must hold when
// the change is applied.
func KeyConditions(h http.Header, q *Query) ([]kvstore.Condition, error) {
	conds, err := HeaderConditions(h)
	if err != nil {
		return nil, err
	}
	rev, ok, err := q.Number("if_revision", 0)
	if err != nil {
		return nil, err
	}
	if ok {
		conds = append(conds, kvstore.Condition{Kind: kvstore.IfRevision, Revisions: []uint64{rev}})
	}
	return conds, nil
}

// ETag returns the entity tag of a revision.
func ETag(revision uint64) string {
	b := make([]byte, 0, 22)
	b = append(b, '"')
	b = strconv.AppendUint(b, revision, 10)
	return string(append(b, '"'))
}
