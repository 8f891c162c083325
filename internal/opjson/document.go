package opjson

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/kvd-io/kvd/internal/limits"
)

// Decode reads one JSON object into the struct that doc points to, by the json
// tags of its fields. Fields that the text does not give keep their values. The
// error is an *Error; doc may then be partly changed.
//
// The fields of doc must be strings, booleans, int64, uint64, pointers to, slices or
// structs of these, or implement json.Unmarshaler. Decode panics on any other type: the type
// of doc depends on the program alone, never on the input.
func Decode(text []byte, doc any) error {
	s := &scan{text: text}
	if s.object(reflect.ValueOf(doc).Elem()) && s.end() {
		return nil
	}
	return s.failure()
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value reads a value into v.
func (s *scan) value(v reflect.Value) bool {
	if s.peek() == 'n' && s.takeNull() {
		return true
	}
	if v.Addr().Type().Implements(unmarshaler) {
		return s.custom(v)
	}
	switch v.Kind() {
	case reflect.String:
		b, ok := s.str()
		v.SetString(string(b))
		return ok
	case reflect.Bool:
		v.SetBool(s.word("true"))
		return v.Bool() || s.word("false") || s.wrongType("true or false")
	case reflect.Int64:
		n, ok := s.integer(math.MinInt64, math.MaxInt64)
		v.SetInt(n)
		return ok
	case reflect.Uint64:
		n, ok := s.integer(0, limits.MaxSafeInteger)
		v.SetUint(uint64(n))
		return ok
	case reflect.Pointer: // a field that can be absent: it stays nil
		v.Set(reflect.New(v.Type().Elem()))
		return s.value(v.Elem())
	case reflect.Slice:
		return s.array(v)
	case reflect.Struct:
		return s.object(v)
	}
	panic(fmt.Sprintf("opjson: a document has a field of type %v", v.Type()))
}

// custom reads a value whose type decodes itself.
func (s *scan) custom(v reflect.Value) bool {
	s.peek()
	from := s.at
	if !s.skip() {
		return false
	}
	if err := v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(s.text[from:s.at]); err != nil {
		return s.fail(nil, from, "%v", err)
	}
	return true
}

func (s *scan) array(v reflect.Value) bool {
	if !s.enter('[', "an array") {
		return false
	}
	list := reflect.MakeSlice(v.Type(), 0, 0)
	for s.more(']') {
		element := reflect.New(v.Type().Elem()).Elem()
		if !s.value(element) {
			return false
		}
		list = reflect.Append(list, element)
	}
	v.Set(list)
	return s.err == nil
}

func (s *scan) object(v reflect.Value) bool {
	if !s.enter('{', "an object") {
		return false
	}
	seen := make(map[int]bool)
	for s.more('}') {
		name, ok := s.name()
		if !ok {
			return false
		}
		i := taggedField(v.Type(), name)
		switch {
		case i < 0:
			return s.refuse("unknown field; expected one of %s", strings.Join(tags(v.Type()), ", "))
		case seen[i]:
			return s.refuse("duplicate field")
		}
		seen[i] = true
		if !s.value(v.Field(i)) {
			return false
		}
	}
	return s.err == nil
}

// tags returns the names of a struct's fields in JSON.
func tags(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// taggedField returns the index of the field with the given name in JSON, or -1.
func taggedField(t reflect.Type, name []byte) int {
	for i := range t.NumField() {
		tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if tag == string(name) && tag != "" && tag != "-" {
			return i
		}
	}
	return -1
}
