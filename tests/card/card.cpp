// A device beside the CPU, for machines that have none: its tensors lie in this process's memory and its kernels are
// the CPU's, but PyTorch takes it for an accelerator. What mixes both devices, reads a tensor of it as an array, or
// draws for it from a generator of the CPU is refused, as a GPU refuses it. Loaded by tests/card/__init__.py.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <set>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Stream;
using torch::jit::Stack;

constexpr auto CARD = DeviceType::PrivateUse1;
const Device HERE(CARD, 0);

// ---- what PyTorch asks of a device: a guard, hooks, generators -----------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return CARD; }
  Device exchangeDevice(Device) const override { return HERE; }
  Device getDevice() const override { return HERE; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return Stream(Stream::DEFAULT, HERE); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, HERE); }
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct CardGenerator final : at::CPUGeneratorImpl {
  CardGenerator() { device_ = HERE; }
};

at::Generator generator(c10::DeviceIndex) {
  return at::make_generator<CardGenerator>();
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return HERE; }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override { return generator(index); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator one = generator(0);
    return one;
  }
};

// ---- memory --------------------------------------------------------------------------------------------------------

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto cpu = c10::GetCPUAllocator()->allocate(bytes);
    auto* data = cpu.get();
    return {data, new c10::DataPtr(std::move(cpu)), &release, HERE};
  }
  static void release(void* held) { delete static_cast<c10::DataPtr*>(held); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator memory;
REGISTER_ALLOCATOR(CARD, &memory);

bool on_card(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == CARD;
}

Tensor shaped_as(const Tensor& like, c10::Storage storage, DispatchKey key) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), DispatchKeySet(key), like.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  impl->_set_conj(like.is_conj());
  impl->_set_neg(like.is_neg());
  return result;
}

// The same memory as a tensor of the CPU; it must not outlive what it was made from.
Tensor host(const Tensor& card) {
  const auto& storage = card.storage();
  c10::DataPtr data(storage.data_ptr().get(), Device(DeviceType::CPU));
  c10::Storage alias(
      c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true);
  return shaped_as(card, std::move(alias), DispatchKey::CPU);
}

// The memory of a tensor of the CPU, taken over by the card.
c10::DataPtr taken(const Tensor& cpu) {
  auto* kept = new Tensor(cpu);
  return {cpu.storage().data_ptr().get(), kept, [](void* held) { delete static_cast<Tensor*>(held); }, HERE};
}

Tensor card(const Tensor& cpu) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), cpu.storage().nbytes(), taken(cpu), &memory, true);
  return shaped_as(cpu, std::move(storage), DispatchKey::PrivateUse1);
}

// ---- every kernel that is not below: the CPU's, on the same memory ------------------------------------------------

struct Call {
  const c10::OperatorHandle& op;
  std::vector<Tensor> cards, hosts;  // pairs

  Tensor entering(const Tensor& tensor, bool index) {
    if (!tensor.defined()) return tensor;
    if (!on_card(tensor)) {
      // as on a GPU: a number may come from the CPU, and so may the places of an indexing
      TORCH_CHECK(
          tensor.dim() == 0 || index,
          "Expected all tensors to be on the same device, but found at least two devices, card:0 and ",
          tensor.device(), "! (", op.schema().operator_name(), ")");
      return tensor;
    }
    for (size_t i = 0; i < cards.size(); ++i)
      if (cards[i].is_same(tensor)) return hosts[i];
    cards.push_back(tensor);
    hosts.push_back(host(tensor));
    return hosts.back();
  }

  Tensor leaving(const Tensor& result) {
    if (!result.defined() || on_card(result)) return result;
    for (size_t i = 0; i < hosts.size(); ++i) {
      if (hosts[i].is_same(result)) return cards[i];
      if (result.storage().data_ptr().get() && hosts[i].storage().is_alias_of(result.storage()))
        return shaped_as(result, cards[i].storage(), DispatchKey::PrivateUse1);
    }
    return card(result);
  }

  // Outputs that the kernel made larger have other memory and other sizes now.
  void written() {
    for (size_t i = 0; i < hosts.size(); ++i) {
      auto& storage = hosts[i].storage();
      if (storage.data_ptr().get() != cards[i].storage().data_ptr().get()) {
        auto* impl = cards[i].storage().unsafeGetStorageImpl();
        impl->set_data_ptr(taken(hosts[i]));
        impl->set_nbytes(storage.nbytes());
      }
      if (hosts[i].sizes() != cards[i].sizes() || hosts[i].strides() != cards[i].strides())
        cards[i].unsafeGetTensorImpl()->set_sizes_and_strides(hosts[i].sizes(), hosts[i].strides());
    }
  }
};

IValue mapped(const IValue& value, const std::function<Tensor(const Tensor&)>& by) {
  if (value.isTensor()) return by(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> result;
    for (const Tensor& tensor : value.toTensorVector()) result.push_back(by(tensor));
    return result;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> result;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorList())
      result.push_back(tensor ? std::optional<Tensor>(by(*tensor)) : std::nullopt);
    return result;
  }
  return value;
}

void fallback(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto start = stack->size() - arguments.size();
  const auto& name = op.schema().name();
  const bool indexing = name.find("aten::index") == 0 || name.find("aten::_index") == 0 ||
      name.find("aten::_unsafe_index") == 0;
  Call call{op, {}, {}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[start + i];
    if (value.isGenerator()) {
      TORCH_CHECK(
          value.toGenerator().device().type() == CARD,
          "Expected a 'card' device type for generator but found '", value.toGenerator().device(), "'");
      value = at::detail::getDefaultCPUGenerator();
    } else if (value.isDevice() && value.toDevice().type() == CARD) {
      value = Device(DeviceType::CPU);
    }
    const bool places = indexing && arguments[i].name() == "indices";
    value = mapped(value, [&](const Tensor& tensor) { return call.entering(tensor, places); });
  }
  op.callBoxed(stack);
  call.written();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i)
    (*stack)[i] = mapped((*stack)[i], [&](const Tensor& tensor) { return call.leaving(tensor); });
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// ---- what makes, moves and looks at memory -------------------------------------------------------------------------

std::atomic<int64_t> waits{0};  // how often the CPU had to wait for a number of the card

Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &memory, DispatchKeySet(DispatchKey::PrivateUse1), c10::dtype_or_default(type), format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, DispatchKeySet(DispatchKey::PrivateUse1), c10::dtype_or_default(type));
}

// Zeros without memory, which forward-mode derivatives are made of.
Tensor zeros_without_memory(
    at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<Device>,
    std::optional<bool>) {
  static at::native::ZeroTensorAllocator nowhere(HERE);
  const DispatchKeySet keys({DispatchKey::PrivateUse1, DispatchKey::ZeroTensor});
  return at::detail::empty_generic(size, &nowhere, keys, c10::dtype_or_default(type), std::nullopt);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (on_card(from) && !on_card(to)) ++waits;
  auto target = on_card(to) ? host(to) : to;
  target.copy_(on_card(from) ? host(from) : from);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const Tensor& self) {
  ++waits;
  return at::native::_local_scalar_dense_cpu(host(self));
}

Tensor& set_storage(
    Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, std::move(source), 0, {size}, {});
}

Tensor& set_nothing(Tensor& self) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, memory.allocate(0), &memory, true);
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {0}, {});
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_efficientzerotensor", &zeros_without_memory);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("view.dtype", &at::native::view_dtype);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("resize_", &at::native::resize_);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Tensor", &at::native::set_tensor_);
  library.impl("set_", &set_nothing);
}

int64_t plain_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention)
}  // namespace at::native

// ---- autocast: the products in 16 bits, as PyTorch lists them ------------------------------------------------------

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

#define IN_16_BITS(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define IN_32_BITS(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

namespace at::autocast {
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(IN_16_BITS)
  AT_FORALL_FP32(IN_32_BITS)
}
}  // namespace at::autocast

extern "C" {
void card_register() {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}
int64_t card_waits() {
  return waits.load();
}
}
