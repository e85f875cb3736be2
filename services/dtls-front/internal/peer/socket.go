package peer

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// socket is a net.PacketConn whose UDP socket can be exchanged for one with another port.
type socket struct {
	server *net.UDPAddr
	mutex  sync.Mutex // held while the socket is exchanged
	now    atomic.Pointer[net.UDPConn]
	closed atomic.Bool
}

func newSocket(server *net.UDPAddr) (*socket, error) {
	made := &socket{server: server}
	return made, made.rebind()
}

func (s *socket) rebind() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.closed.Load() {
		return net.ErrClosed
	}
	fresh, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	if old := s.now.Swap(fresh); old != nil {
		return old.Close()
	}
	return nil
}

func (s *socket) ReadFrom(buffer []byte) (int, net.Addr, error) {
	for {
		current := s.now.Load()
		count, from, err := current.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) && !s.closed.Load() {
			continue // exchanged while waiting
		}
		return count, from, err
	}
}

func (s *socket) WriteTo(payload []byte, to net.Addr) (int, error) {
	return s.now.Load().WriteTo(payload, to)
}
func (s *socket) LocalAddr() net.Addr                { return s.now.Load().LocalAddr() }
func (s *socket) SetDeadline(t time.Time) error      { return s.now.Load().SetDeadline(t) }
func (s *socket) SetReadDeadline(t time.Time) error  { return s.now.Load().SetReadDeadline(t) }
func (s *socket) SetWriteDeadline(t time.Time) error { return s.now.Load().SetWriteDeadline(t) }

func (s *socket) Close() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.closed.Store(true)
	return s.now.Load().Close()
}
